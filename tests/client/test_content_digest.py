from typing import TYPE_CHECKING

from stratoscope.client import Client
from stratoscope_wire import ActivationsRequest, Stimulus
from stratoscope_wire.digest import content_digest

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer


def test_every_request_with_a_body_says_its_digest(client: Client, server: "FaultServer") -> None:
    client.fetch(ActivationsRequest(stimuli=[Stimulus(id="s", text="Zürich")]))
    assert len(server.posts) == 1
    assert server.posts[0].headers["content-digest"] == content_digest(server.posts[0].body)
    assert all("content-digest" not in received.headers for received in server.received if received.method == "GET")
