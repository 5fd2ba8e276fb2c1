"""Folders of a small encoder and a small decoder."""

import pytest

from intarsia.backbone import Backbone
from workflow.tiny_run import make_backbone, make_decoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return Backbone.load(str(make_backbone(tmp_path_factory.mktemp("encoder"))), dtype="float32")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return Backbone.load(str(make_decoder(tmp_path_factory.mktemp("decoder"))), dtype="float32")
