"""``maecli demo``."""

from __future__ import annotations

from mae.demo.config import DemoConfig
from maecli.loading import without_collections
from maecli.options import command_from
from maecli.output import Output


@command_from(DemoConfig)
def demo(config: DemoConfig, output: Output) -> None:
    """Open a page on this machine: drop an image, mask it with a brush or a slider, and see it reconstructed.

    The page is for this machine alone and loads nothing from elsewhere; Ctrl-C ends it.

    Examples:
      maecli demo

      maecli demo photos --checkpoint run --port 8000
    """
    with without_collections():
        from mae.checkpoints.hub import announce_downloads
        from mae.demo.server import DemoServer
        from mae.demo.session import start_session

    with DemoServer(config.port) as server:  # before loading the model, since the port may be in use
        with announce_downloads(output.download):
            server.session = start_session(config, lambda done, total: output.count(done, total, "images"))
        for note in server.session.notes:
            output.note(note)
        output.result(lambda: {"url": server.url}, lambda console: console.print(server.url), server.url)
        output.note("open this address in a browser; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            output.note("ended")
