# pragma version ^0.4.0
# Scores of sources: whoever writes them brings a signature of each source over the scores it was shown.

struct Record:
    owner: address
    reliability: int256
    usefulness: int256
    nonce: uint256
    stamp: uint256

MOST: constant(uint256) = 32

admin: public(address)
records: public(HashMap[uint256, Record])

event Scored:
    source: uint256
    reliability: int256
    usefulness: int256

@deploy
def __init__():
    self.admin = msg.sender

@external
def create(source: uint256, owner: address, reliability: int256, usefulness: int256):
    assert msg.sender == self.admin, "only the admin creates records"
    assert owner != empty(address), "a record needs an owner"
    assert self.records[source].owner == empty(address), "the record exists"
    self.records[source] = Record(
        owner=owner, reliability=reliability, usefulness=usefulness, nonce=0, stamp=block.number
    )

@view
@internal
def _digest(source: uint256, query: bytes32) -> bytes32:
    record: Record = self.records[source]
    inner: bytes32 = keccak256(
        abi_encode(self, source, query, record.reliability, record.usefulness, record.nonce)
    )
    return keccak256(concat(b"\x19Ethereum Signed Message:\n32", inner))

@external
def update(
    query: bytes32,
    sources: DynArray[uint256, MOST],
    reliability: DynArray[int256, MOST],
    usefulness: DynArray[int256, MOST],
    v: DynArray[uint256, MOST],
    r: DynArray[uint256, MOST],
    s: DynArray[uint256, MOST],
):
    n: uint256 = len(sources)
    assert n == len(reliability) and n == len(usefulness), "as many scores as sources"
    assert n == len(v) and n == len(r) and n == len(s), "as many signatures as sources"
    for i: uint256 in range(n, bound=MOST):
        source: uint256 = sources[i]
        assert self.records[source].owner != empty(address), "no such record"
        signer: address = ecrecover(self._digest(source, query), v[i], r[i], s[i])
        assert signer == self.records[source].owner, "not signed by its owner for these scores"
        self.records[source].reliability += reliability[i]
        self.records[source].usefulness += usefulness[i]
        self.records[source].nonce += 1
        self.records[source].stamp = block.number
        log Scored(
            source=source,
            reliability=self.records[source].reliability,
            usefulness=self.records[source].usefulness,
        )
