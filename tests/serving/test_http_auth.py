"""Keys: reading their file, and what each role opens."""

import pytest

from intarsia.errors import ConfigError
from intarsia.serving.http import Keys
from intarsia.serving.http.keys import Role
from serving.fake_engine import FakeEngine, refusal, serving

INFER, ADMIN = "infer-key-0123456789", "admin-key-0123456789"


@pytest.fixture
def keys_file(tmp_path):
    def write(content, mode=0o600):
        path = tmp_path / "keys"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    return write


@pytest.fixture
def keys(keys_file):
    return Keys.read(keys_file(f"# ours\ninfer:{INFER}\n\nadmin: {ADMIN}\n"))


def test_each_key_has_its_role_and_any_other_none(keys):
    assert keys.role(INFER) is Role.INFER
    assert keys.role(ADMIN) is Role.ADMIN
    for other in ("", INFER[:-1], INFER + "0", INFER.upper(), f"infer:{INFER}", "ключ", "\udcff"):
        assert keys.role(other) is None


def test_the_keys_themselves_are_not_kept(keys):
    assert INFER not in repr(keys)


# name: (content, a part of the message)
BAD = {
    "nothing": ("", "holds no key"),
    "only comments": ("# a\n\n", "holds no key"),
    "no role": ("0123456789abcdef\n", "line 1: expected `infer:KEY`"),
    "an unknown role": ("# a\nroot:0123456789abcdef\n", "line 2: expected `infer:KEY`"),
    "a short key": ("infer:secret\n", "at least 16"),
    "a key with a space": ("infer:0123456789 abcdef\n", "without spaces"),
    "a key that a header cannot hold": ("infer:0123456789abcdefé\n", "ASCII"),
    "two roles of one key": (f"infer:{INFER}\nadmin:{INFER}\n", "line 2: this key has another role above"),
    "bytes": (b"\xff\xfe\x00", "UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_not_of_keys_is_refused_without_repeating_it(keys_file, case):
    content, fragment = BAD[case]
    with pytest.raises(ConfigError, match=fragment.replace("`", ".")) as caught:
        Keys.read(keys_file(content))
    assert "secret" not in str(caught.value)
    assert "0123456789" not in str(caught.value)


def test_a_file_that_everybody_may_read_is_refused_with_the_way_out(keys_file):
    path = keys_file(f"infer:{INFER}", 0o644)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        Keys.read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no keys file at"):
        Keys.read(tmp_path / "nowhere")


ASK = {"json": {"task": "mood", "text": "abc"}}
OPEN = ["/health", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"]
CLOSED = [
    "/v1/tasks",
    "/v1/models",
    "/v1/load",
    "/metrics",
    "/v2",
    "/v2/models/mood",
    "/nothing",
    "/V1/tasks",
    "//v1/tasks",
]


def test_without_keys_everything_is_open_but_the_admins_routes():
    client = serving(FakeEngine())
    assert client.post("/v1/classify", **ASK).status_code == 200
    assert client.get("/metrics").status_code == 200
    refusal(client.put("/v1/tasks/mood", files={"task.json": b"{}"}), 403, "start it with --keys")
    refusal(client.delete("/v1/tasks/mood"), 403, "start it with --keys")


def test_with_keys_only_health_and_what_holds_no_data_is_open(keys):
    client = serving(FakeEngine(), keys)
    for path in OPEN:
        assert client.get(path).status_code == 200, path
    for path in CLOSED:
        answer = client.get(path)
        refusal(answer, 401, "Authorization: Bearer KEY")
        assert answer.headers["www-authenticate"] == "Bearer"
    refusal(client.post("/v1/classify", **ASK), 401)


@pytest.mark.parametrize("key", [INFER, ADMIN])
@pytest.mark.parametrize("how", ["Bearer", "bearer", "X-API-Key"])
def test_a_key_comes_in_either_header(keys, key, how):
    headers = {"X-API-Key": key} if how == "X-API-Key" else {"Authorization": f"{how} {key}"}
    client = serving(FakeEngine(), keys)
    assert client.post("/v1/classify", **ASK, headers=headers).status_code == 200
    assert client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "value", ["Bearer wrong-key-0123456", f"Basic {INFER}", INFER, "Bearer", b"Bearer \xff\xfe", ""]
)
def test_another_key_or_scheme_opens_nothing(keys, value):
    engine = FakeEngine()
    answer = serving(engine, keys).post("/v1/classify", **ASK, headers={"Authorization": value})
    refusal(answer, 401)
    assert "wrong-key" not in answer.text
    assert engine.asked == []


def test_an_infer_key_changes_no_task(keys):
    client = serving(FakeEngine(), keys)
    headers = {"X-API-Key": INFER}
    refusal(client.put("/v1/tasks/mood", files={"task.json": b"{}"}, headers=headers), 403, "needs an admin key")
    refusal(client.delete("/v1/tasks/mood", headers=headers), 403, "needs an admin key")


def test_a_stranger_is_refused_before_the_body_is_read(keys):
    taken = 0

    def body():
        nonlocal taken
        for _ in range(8):
            taken += 1
            yield b"a" * 1000

    client = serving(FakeEngine(), keys)
    # The client in this process hands its body over when it is asked for; nobody asks.
    refusal(client.post("/v1/classify", content=body(), headers={"Content-Type": "application/json"}), 401)
    refusal(client.put("/v1/tasks/mood", content=body(), headers={"X-API-Key": INFER}), 403)
    assert taken == 0
