"""Machine code of a compiler, a processor or a system with a fault."""


def is_refused(library, wrong, monkeypatch, caplog):
    """Asserts that a library whose kernels do what `wrong` does in place of `run` is not used, which the log says."""
    with monkeypatch.context() as patch:
        patch.setattr(library, "run", wrong)
        patch.setattr(library, "_trusted", None)
        caplog.clear()
        assert not library.there()
        assert f"{library.name}.c as compiled here computes something else" in caplog.text
    assert library.there()
