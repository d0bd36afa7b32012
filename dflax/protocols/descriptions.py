"""What an agent of ours says of itself under protocols that we do not serve."""

from typing import Any

from dflax import validation
from dflax.protocols.experiments import algorithms, described


def acp_manifest() -> dict[str, Any]:
    """A manifest of the Agent Communication Protocol: name, description, and what it takes and gives."""
    return {
        "name": "dflax",
        "description": "Runs registered federated and decentralised algorithms on digits.",
        "input_content_types": ["application/json"],
        "output_content_types": ["application/json"],
        "metadata": {
            "domains": ["federated learning"],
            "capabilities": [
                {"name": name, "description": text} for name, text in algorithms().items()
            ],
        },
    }


def anp_description(url: str) -> dict[str, Any]:
    """A description of the Agent Network Protocol, as JSON-LD.

    Args:
      url: where the agent is served, beginning with "http://" or "https://".

    Raises:
      TypeError, ValueError: naming `url`.
    """
    validation.text("url", url)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url must begin with http:// or https://, got {validation.shown(url)}.")
    return {
        "@context": {
            "@vocab": "https://schema.org/",
            "ad": "https://agent-network-protocol.com/ad#",
        },
        "@type": "ad:AgentDescription",
        "@id": url,
        "name": "dflax",
        "description": acp_manifest()["description"],
        "ad:interfaces": [
            {
                "@type": "ad:StructuredInterface",
                "name": name,
                "description": text,
                "ad:input": described(name)["settings"],
            }
            for name, text in algorithms().items()
        ],
    }
