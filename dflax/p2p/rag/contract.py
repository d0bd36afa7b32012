"""The ledger of scores as a contract on an Ethereum virtual machine that runs in this process."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dflax import validation

SOURCE = pathlib.Path(__file__).with_name("scores.vy")


class Receipt(NamedTuple):
    """What a transaction did.

    Attributes:
      gas: that it took.
      events: `(source, reliability, usefulness)` of each score that it wrote.
    """

    gas: int
    events: list[tuple[int, int, int]]


class ScoreContract:
    """Scores of S sources on a chain of its own, with a signing key for each source.

    A source signs the query, the scores that the chain shows of it, and how often they were written: a
    signature serves once. It does not cover the new scores, which are not known when it is given;
    whoever writes them can write what it likes. A transaction is refused whole if one signature is
    wrong.

    Args:
      sources: S in [1, 32].
      start: reliability and usefulness of all at first.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: the extra `evm` is missing.
    """

    def __init__(self, sources: int, *, start: int = 10_000):
        validation.integer("sources", sources, low=1, high=32)
        low = -validation.LARGEST_COUNT
        validation.integer("start", start, low=low, high=validation.LARGEST_COUNT)
        account, compiled, web3 = _libraries()
        self._encode_and_sign = account
        self.chain = web3.Web3(web3.EthereumTesterProvider())
        self.chain.eth.default_account = self.chain.eth.accounts[0]
        receipt = self._mined(
            self.chain.eth.contract(
                abi=compiled["abi"], bytecode=compiled["bytecode"]
            ).constructor()
        )
        self.contract = self.chain.eth.contract(
            address=receipt["contractAddress"], abi=compiled["abi"]
        )
        self.owners = [account.Account.create() for _ in range(sources)]
        for source, owner in enumerate(self.owners):
            self._mined(self.contract.functions.create(source, owner.address, start, start))

    def scores(self) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
        """`[S]` reliabilities and `[S]` usefulnesses, as the chain has them."""
        records = [self.contract.functions.records(source).call() for source in self._all()]
        return np.array([one[1] for one in records]), np.array([one[2] for one in records])

    def signed(self, query: bytes, sources: Sequence[int]) -> list[Any]:
        """Each source's signature over the query, the scores it is shown, and their nonce.

        Args:
          query: 32 bytes, a hash of what was asked.
          sources: who signs.

        Raises:
          ValueError: a query of another length.
        """
        if not isinstance(query, bytes) or len(query) != 32:
            raise ValueError("query must be 32 bytes, a hash of what was asked.")
        found = []
        for source in sources:
            _, reliability, usefulness, nonce, _ = self.contract.functions.records(source).call()
            types = ["address", "uint256", "bytes32", "int256", "int256", "uint256"]
            values = [self.contract.address, source, query, reliability, usefulness, nonce]
            inner = self.chain.keccak(self.chain.codec.encode(types, values))
            message = self._encode_and_sign.messages.encode_defunct(inner)
            found.append(self.owners[source].sign_message(message))
        return found

    def update(
        self,
        query: bytes,
        sources: Sequence[int],
        reliability: Sequence[int],
        usefulness: Sequence[int],
        signatures: Sequence[Any] | None = None,
    ) -> Receipt:
        """One transaction that adds to the scores of some sources.

        Args:
          query: 32 bytes.
          sources: whose scores; at most 32.
          reliability: what is added to each.
          usefulness: what is added to each.
          signatures: of `signed`; default those of now.

        Raises:
          ValueError: the contract refuses the transaction, by its own words; nothing is written.
        """
        given = self.signed(query, sources) if signatures is None else list(signatures)
        call = self.contract.functions.update(
            query,
            list(map(int, sources)),
            list(map(int, reliability)),
            list(map(int, usefulness)),
            [one.v for one in given],
            [one.r for one in given],
            [one.s for one in given],
        )
        receipt = self._mined(call)
        logs = self.contract.events.Scored().process_receipt(receipt)
        events = [
            tuple(log["args"][name] for name in ("source", "reliability", "usefulness"))
            for log in logs
        ]
        return Receipt(int(receipt["gasUsed"]), events)

    def _all(self) -> range:
        return range(len(self.owners))

    def _mined(self, call: Any) -> Any:
        from eth_tester.exceptions import TransactionFailed
        from web3.exceptions import ContractLogicError, Web3RPCError

        try:
            return self.chain.eth.wait_for_transaction_receipt(call.transact())
        except (TransactionFailed, ContractLogicError, Web3RPCError) as error:
            raise ValueError(f"the contract refuses the transaction: {error}") from None


def _libraries() -> tuple[Any, dict[str, Any], Any]:
    """eth-account, the compiled contract, web3."""
    try:
        import eth_account
        import eth_account.messages
        import web3
        from vyper import compile_code
    except ImportError as error:
        raise ImportError(
            f"a contract needs vyper, web3 and eth-tester, and {error.name} is missing: "
            "pip install 'dflax[evm]'"
        ) from error
    compiled = compile_code(SOURCE.read_text(), output_formats=["abi", "bytecode"])
    return eth_account, compiled, web3
