"""Models between processes by their content ids, over py-libp2p (extra `p2p`)."""

import importlib.util
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

from dflax import validation
from dflax.p2p.blocks.models import ModelBlocks, content_id, model_of, wanted_blocks

PROTOCOL = "/dflax/blocks/1.0.0"
ID_BYTES, LENGTH_BYTES, PIECE = 64, 8, 65_536
LARGEST_BLOCK = 1 << 26


class Fetched(NamedTuple):
    """A model that came over the network.

    Attributes:
      params: nested dictionaries of NumPy arrays.
      dropped: blocks that came and whose hash did not fit.
      received: bytes of blocks that did.
    """

    params: dict[str, Any]
    dropped: int
    received: int


def serving(
    blocks: ModelBlocks, *, listen: str = "/ip4/127.0.0.1/tcp/0"
) -> AbstractAsyncContextManager[str]:
    """A libp2p peer that answers for the blocks of a model while the context is open, under trio.

    A request is a content id of 64 hexadecimal digits, an answer 8 bytes of length and the block;
    length 0 where it has none of that id.

    Args:
      blocks: from `model_blocks`.
      listen: multiaddress to listen on; the default is a free port that this machine alone reaches.

    Returns:
      An asynchronous context manager that gives the address to hand to `fetched`.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: py-libp2p is not installed.
    """
    validation.instance("blocks", blocks, ModelBlocks, "dflax.p2p.model_blocks makes them.")
    _address("listen", listen)
    _libp2p()
    return _serving(blocks, listen)


@asynccontextmanager
async def _serving(blocks: ModelBlocks, listen: str) -> AsyncIterator[str]:
    import multiaddr
    from libp2p import new_host

    async def answer(stream: Any) -> None:
        while len(wanted := await _exactly(stream, ID_BYTES)) == ID_BYTES:
            block = blocks.blocks.get(wanted.decode("ascii", "replace"), b"")
            await stream.write(len(block).to_bytes(LENGTH_BYTES, "big") + block)
        await stream.close()

    host = new_host()
    async with host.run(listen_addrs=[multiaddr.Multiaddr(listen)]):
        host.set_stream_handler(PROTOCOL, answer)
        yield str(host.get_addrs()[0])


def fetched(
    content: str, addresses: Sequence[str], *, seconds: float = 60.0
) -> Coroutine[Any, Any, Fetched]:
    """Fetches a model by its content id from the first peers that have its blocks, under trio.

    The manifest comes first, then the blocks that it lists. A block whose hash is not its id is
    dropped and counted, and asked of the next peer.

    Args:
      content: the model's content id.
      addresses: of peers that serve it, those to be asked first in front.
      seconds: > 0, that the whole may take.

    Returns:
      A coroutine that gives `Fetched`. It raises `ConnectionError` where no peer had a block that is
      wanted, and `TimeoutError`.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: py-libp2p is not installed.
    """
    validation.text("content", content)
    if len(content) != ID_BYTES or set(content) - set("0123456789abcdef"):
        raise ValueError(
            f"content must be {ID_BYTES} hexadecimal digits, got {validation.shown(content)}. It is "
            "the content_id of dflax.p2p.model_blocks."
        )
    peers = validation.sequence("addresses", addresses, "multiaddresses")
    for place, one in enumerate(peers):
        _address(f"addresses[{place}]", one)
    validation.real("seconds", seconds, low=0.0, low_open=True, scalar=True)
    _libp2p()
    return _fetched(content, peers, float(seconds))


async def _fetched(content: str, addresses: list[str], seconds: float) -> Fetched:
    import multiaddr
    import trio
    from libp2p import new_host
    from libp2p.peer.peerinfo import info_from_p2p_addr

    fetching = _Fetching(content, len(addresses))
    failure: ConnectionError | None = None
    with trio.move_on_after(seconds) as limit:
        host = new_host()
        async with host.run(listen_addrs=[]):
            # What is raised in here would come out of the host in groups of groups.
            try:
                streams = []
                for one in addresses:
                    info = info_from_p2p_addr(multiaddr.Multiaddr(one))
                    await host.connect(info)
                    streams.append(await host.new_stream(info.peer_id, [PROTOCOL]))
                await fetching.everything(streams)
                for stream in streams:
                    await stream.close()
            except ConnectionError as error:
                failure = error
    if failure is not None:
        raise failure
    if limit.cancelled_caught:
        raise TimeoutError(f"content {content[:16]} did not come within {seconds:g} seconds.")
    return Fetched(model_of(content, fetching.have), fetching.dropped, fetching.received)


class _Fetching:
    """Blocks that have come, and a count of those that did not fit."""

    def __init__(self, content: str, peers: int):
        self.content, self.peers = content, peers
        self.have: dict[str, bytes] = {}
        self.dropped = self.received = 0

    async def everything(self, streams: list[Any]) -> None:
        """The manifest, and then what it lists."""
        manifest = await self.block(streams, self.content)
        for name in wanted_blocks(manifest):
            await self.block(streams, name)

    async def block(self, streams: list[Any], name: str) -> bytes:
        """One block, of the first peer whose answer fits."""
        for stream in streams:
            await stream.write(name.encode())
            head = await _exactly(stream, LENGTH_BYTES)
            length = int.from_bytes(head, "big")
            if len(head) < LENGTH_BYTES or not 0 < length <= LARGEST_BLOCK:
                continue
            block = await _exactly(stream, length)
            if content_id(block) == name:
                self.have[name], self.received = block, self.received + length
                return block
            self.dropped += 1
        raise ConnectionError(f"none of {self.peers} peers had content {name[:16]}.")


async def _exactly(stream: Any, count: int) -> bytes:
    """So many bytes, or fewer where the stream ends."""
    from libp2p.network.stream.exceptions import StreamError

    parts, missing = [], count
    while missing:
        try:
            part = await stream.read(min(missing, PIECE))
        except StreamError:
            break
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _address(name: str, value: Any) -> None:
    validation.text(name, value)
    if not value.startswith("/"):
        raise ValueError(
            f"{name} must be a multiaddress, got {validation.shown(value)}. For example "
            "/ip4/127.0.0.1/tcp/4001."
        )


def _libp2p() -> None:
    if importlib.util.find_spec("libp2p") is None:
        raise ImportError("models over libp2p need py-libp2p: pip install 'dflax[p2p]'.")
