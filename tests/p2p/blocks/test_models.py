"""Models as blocks: in memory, over libp2p on this machine, and what is said of a run beside them."""

import numpy as np
import pytest

from dflax import p2p

RNG = np.random.default_rng(0)
PARAMS = {
    "Dense_0": {
        "kernel": RNG.normal(size=(40, 30)).astype(np.float32),
        "bias": np.zeros(30, np.float16),
    },
    "scale": np.float32(2.5) * np.ones((), np.float32),
}
MODEL = p2p.model_blocks(PARAMS, block_bytes=1000)


def corrupted(model):
    """Everything but the manifest with its first byte changed."""
    return p2p.ModelBlocks(
        model.content_id,
        {
            name: block if name == model.content_id else bytes([block[0] ^ 1]) + block[1:]
            for name, block in model.blocks.items()
        },
    )


def same(a, b):
    import jax

    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_model_comes_back_from_its_blocks():
    assert same(p2p.model_of(*MODEL), PARAMS)
    assert all(
        len(block) <= 1000 for name, block in MODEL.blocks.items() if name != MODEL.content_id
    )
    wanted = p2p.wanted_blocks(MODEL.blocks[MODEL.content_id])
    assert set(wanted) | {MODEL.content_id} == set(MODEL.blocks)
    again = p2p.model_blocks(
        {"scale": PARAMS["scale"], "Dense_0": PARAMS["Dense_0"]}, block_bytes=1000
    )
    assert again.content_id == MODEL.content_id
    other = PARAMS | {"scale": PARAMS["scale"] + 1}
    changed = p2p.model_blocks(other, block_bytes=1000)
    # A version of which one array changed shares all other blocks.
    assert changed.content_id != MODEL.content_id
    assert len(set(changed.blocks) - set(MODEL.blocks)) == 2


def test_wrong_blocks_are_refused_by_name():
    with pytest.raises(ValueError, match="blocks must have the hashes that they are named by"):
        p2p.model_of(*corrupted(MODEL))
    with pytest.raises(ValueError, match="blocks must hold content"):
        p2p.model_of(MODEL.content_id, {MODEL.content_id: MODEL.blocks[MODEL.content_id]})
    with pytest.raises(ValueError, match="manifest must list"):
        p2p.wanted_blocks(b"\xff{")
    with pytest.raises(ValueError, match="params must have names"):
        p2p.model_blocks({"a/b": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match="content must be 64"):
        p2p.fetched("abc", ["/ip4/127.0.0.1/tcp/1"])
    with pytest.raises(ValueError, match="listen must be a multiaddress"):
        p2p.serving(MODEL, listen="localhost:1")


@pytest.mark.slow
def test_two_peers_over_libp2p_send_a_model_and_a_third_sends_rubbish():
    pytest.importorskip("libp2p", reason="needs the extra p2p")
    import trio

    async def meet():
        async with p2p.serving(corrupted(MODEL)) as wrong, p2p.serving(MODEL) as right:
            return await p2p.fetched(MODEL.content_id, [wrong, right])

    found = trio.run(meet)
    assert same(found.params, PARAMS)
    assert found.dropped == len(MODEL.blocks) - 1
    assert found.received == sum(map(len, MODEL.blocks.values()))

    async def alone():
        async with p2p.serving(corrupted(MODEL)) as wrong:
            with pytest.raises(ConnectionError, match="none of 1 peers had content"):
                await p2p.fetched(MODEL.content_id, [wrong])

    trio.run(alone)


def test_pycrdt_documents_hold_what_is_said_of_a_run_and_converge_as_our_map_does():
    pycrdt = pytest.importorskip("pycrdt", reason="needs the extra p2p")
    documents = [pycrdt.Doc(), pycrdt.Doc()]
    runs = [one.get("run", type=pycrdt.Map) for one in documents]
    runs[0]["model"] = MODEL.content_id
    runs[1]["rounds"] = 30
    # Both write the same slot at once.
    runs[0]["seed"], runs[1]["seed"] = 1, 2
    states = [one.get_state() for one in documents]
    updates = [documents[0].get_update(states[1]), documents[1].get_update(states[0])]
    # In either order, and twice.
    for update in (updates[1], updates[1]):
        documents[0].apply_update(update)
    documents[1].apply_update(updates[0])
    first, second = (one.to_py() for one in runs)
    assert first == second
    assert (first["model"], first["rounds"]) == (MODEL.content_id, 30)
    assert first["seed"] in (1, 2)
    assert same(p2p.model_of(first["model"], MODEL.blocks), PARAMS)
    table = p2p.lww_map(3)
    ours = [table.write(table.bottom(), peer, 2, peer + 1, 1) for peer in range(2)]
    ours[0], ours[1] = table.write(ours[0], 0, 0, 7, 2), table.write(ours[1], 1, 1, 30, 2)
    joined = [table.join(ours[0], ours[1]), table.join(ours[1], ours[0])]
    assert joined[0].value.tolist() == joined[1].value.tolist() == [7, 30, 2]
