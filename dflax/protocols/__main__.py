"""`python -m dflax.protocols mcp` serves experiments on stdio, `a2a` on the loopback."""

import argparse


def main(arguments: list[str] | None = None) -> None:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m dflax.protocols", description=__doc__)
    parser.add_argument("protocol", choices=("mcp", "a2a"))
    parser.add_argument(
        "--host", default="127.0.0.1", help="of the A2A agent; default the loopback"
    )
    parser.add_argument("--port", type=int, default=9999, help="of the A2A agent")
    asked = parser.parse_args(arguments)
    if asked.protocol == "mcp":
        from dflax.protocols.mcp_server import mcp_server

        mcp_server().run("stdio")
    else:
        import uvicorn

        from dflax.protocols.a2a_agent import a2a_application

        application = a2a_application(f"http://{asked.host}:{asked.port}/")
        uvicorn.run(application, host=asked.host, port=asked.port)


if __name__ == "__main__":
    main()
