"""Lattica: links across NATs, lookups, replicas, blocks against closed forms, and training on them.

What came out with seeds from 700 on; five of them, 15 of swarms, 3 networks x 3 splits of training:

- Links among 400 peers: the direct share is within 2.2 sigma of its closed form given the drawn types,
  at p = 0.1 to 0.976, whether public peers are dialled or punched. The share of pairs that can be joined
  moves between 0.855 and 0.894 from draw to draw, around 0.8725. With relays all reach all. Joining
  0.80 times as many pairs gives both published figures at once: 0.701 direct, 0.976 at the first try.
- Lookups: 2.85, 3.83, 4.88, 5.82 hops with one contact a bucket among 64, 256, 1,024, 4,096 peers, and
  1.18, 1.64, 1.92, 2.30 with 20; full lookups take 20.0, 20.3, 21.6, 22.5 messages in 7.0, 7.1, 7.6, 7.9
  rounds and always find the 20 closest. A peer's own id is 0.07 to 0.14 hops further than a random key
  with one contact a bucket (whose bucket may be empty on the way), and no further with 20.
- Replicas are equal after 5.2, 7, 9, 11 rounds of push-pull among 16, 64, 256, 1,024. On two islands
  of 8 that meet again, version vectors send 4 % of the entries of whole states, hashes of entries 9 %,
  one digest for all 32 %. The index that is written back keeps 2 of 16 additions, the set all.
- 16 blocks of one source: 18.0 to 22.3 rounds coordinated, 33 to 52 blind, 16 (n - 1) over a star. Where
  a quarter of the peers corrupt what they send, rating them drops 35 blocks instead of 100.
- Training on digits: with relays the graph is the complete one, and equal results are no surprise
  (D-PSGD 0.945, DFedADMM 0.965). Direct links alone cost 0.2 to 0.3 points under the mix of NATs above,
  and 22 where nobody is public and half have symmetric NATs, who then train alone. Without punching and
  relays everything hangs on the few public peers (0.66 and 0.74). Punching takes nine tenths of their
  traffic off the relays under that mix.
- A model of 2.1 MB went from one libp2p peer to another on this machine, past one that served rubbish
  under the right ids; documents of pycrdt that named it agreed.
"""

import dataclasses

import jax
import numpy as np

from experiments.studies.p2p import _lattica_claims as claims
from experiments.studies.p2p import _lattica_protocols as protocols
from experiments.studies.p2p import _lattica_training as training
from experiments.studies.p2p._lattica_figures import protocols_figure, training_figure
from experiments.studies.p2p._lattica_wire import LIBP2P, PYCRDT, over_libp2p
from experiments.tasks.inputs import DIGITS
from experiments.tools.command import main
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seed: the first of all seeds.
      seeds: of everything but swarms and training.
      linked: peers of the networks whose links are counted.
      rates: success of one try of hole punching.
      sizes: peers that look up.
      gossips: peers that gossip; other schedules up to 256 of them.
      swarms: peers of a swarm.
      swarm_seeds: of each.
      peers: that train, on scikit-learn's digits.
      splits: seeds of splits and of networks.
      alpha: Dirichlet concentration of the labels.
      rounds: of training.
      local_steps: K of DFedADMM.
      batch_size: B; D-PSGD takes one step on K B examples.
      rate: of DFedADMM's local steps.
      single_rate: of D-PSGD's.
    """

    seed: int = 700
    seeds: int = 5
    linked: int = 400
    rates: tuple[float, ...] = (0.1, 0.3, 0.6, 0.976)
    sizes: tuple[int, ...] = (64, 256, 1024, 4096)
    gossips: tuple[int, ...] = (16, 64, 256, 1024)
    swarms: tuple[int, ...] = (4, 8, 16, 32)
    swarm_seeds: int = 15
    peers: int = 20
    splits: int = 3
    alpha: float = 0.3
    rounds: int = 120
    local_steps: int = 10
    batch_size: int = 16
    rate: float = 0.1
    single_rate: float = 0.3


def protocols_part(config: Config, stage: Stage = in_memory) -> Summary:
    """Links, lookups, replicas and swarms against their closed forms."""
    report = Report()
    seeds = range(config.seed, config.seed + config.seeds)
    links = stage("links", lambda: protocols.reached(seeds, config.linked, config.rates))
    lower = stage("fewer pairs", lambda: protocols.lowered(seeds, config.linked, 0.7 / 0.8725))
    claims.of_links(report, links, lower, config.rates)
    lookups = {
        n: stage(f"lookups among {n}", lambda n=n: protocols.looked_up(seeds, n))
        for n in config.sizes
    }
    claims.of_lookups(report, lookups)
    gossip = {
        schedule: {
            n: stage(
                f"{schedule} among {n}",
                lambda n=n, schedule=schedule: protocols.gossip_rounds(seeds, n, schedule),
            )
            for n in config.gossips
            if schedule == "push-pull" or n <= 256
        }
        for schedule in ("push-pull", "one by one", "matching", "pull")
    }
    islands = stage("islands", lambda: protocols.parted(seeds))
    claims.of_gossip(report, gossip, islands)
    many = range(config.seed, config.seed + config.swarm_seeds)
    swarms = {
        n: stage(f"swarms of {n}", lambda n=n: protocols.swarms(many, n)) for n in config.swarms
    }
    spoilt = stage("corrupted blocks", lambda: protocols.spoilt(many))
    claims.of_swarms(report, swarms, spoilt)
    drawn = protocols_figure(links, config.rates, lookups, gossip, swarms)
    return report.summary({"lattica": drawn})


def training_part(config: Config, stage: Stage = in_memory) -> Summary:
    """D-PSGD and DFedADMM over the links of simulated networks."""
    report = Report()
    seeds = list(range(config.seed + 100, config.seed + 100 + config.splits))
    open_ = training.graphs(seeds, config.peers, protocols.MIX)
    closed = training.graphs(seeds, config.peers, training.CLOSED)
    links = open_ | {
        f"{name}, closed NATs": closed[name] for name in (training.RELAYED, training.PUNCHED)
    }
    curves = {
        method: stage(method, lambda method=method: training.trained(method, links, seeds, config))
        for method in ("D-PSGD", "DFedADMM")
    }
    for method, graphs in curves.items():
        for name, found in graphs.items():
            report.row(
                method,
                f"{method}, {name}",
                found["local"],
                mean_model=found["mean model"][:, -1],
                distance=found["distance"][:, -1],
                links_of_a_peer=np.mean([link.sum(1).mean() for link in links[name]]),
            )
    _seconds(report, seeds, config)
    cut = f"{training.PUNCHED}, closed NATs"
    for method, graphs in curves.items():
        full, relayed = graphs[training.COMPLETE], graphs[training.RELAYED]
        shut = graphs[f"{training.RELAYED}, closed NATs"]
        gap = max(abs(full["local"] - one["local"]).max() for one in (relayed, shut))
        report.claim(
            f"{method}: relays and punching end within a point of the complete graph, every run",
            gap < 0.01,
            float(gap),
            0.01,
        )
        alone = graphs[cut]
        report.claim(
            f"{method}: direct links alone do not reach consensus where NATs are closed, every run",
            np.all(alone["distance"][:, -1] > 10 * full["distance"][:, -1])
            and alone["distance"][:, -1].min() > 0.1,
            alone["distance"][:, -1].tolist(),
            full["distance"][:, -1].tolist(),
        )
        lost = full["local"] - alone["local"]
        report.claim(
            f"{method}: and their models are worse by 10 points and more, mean of the runs",
            lost.mean() > 0.1,
            lost.tolist(),
            0.1,
        )
    return report.summary({"lattica_training": training_figure(curves, list(links), config.peers)})


def _seconds(report: Report, seeds: list[int], config: Config) -> None:
    relayed: dict[str, list[float]] = {}
    for name, mix in (("", protocols.MIX), (", closed NATs", training.CLOSED)):
        for attempts, how in ((0, "relays, no punching"), (3, "relays and punching")):
            made = [
                training.network(jax.random.key(seed), config.peers, mix, attempts)
                for seed in seeds
            ]
            relayed[how + name] = [float((one.relay >= 0).mean()) for one in made]
            report.row(
                "a round of all to all, 1.7 MB a model",
                how + name,
                None,
                seconds=[training.seconds_of_round(one, config.peers) for one in made],
                share_over_relays=relayed[how + name],
            )
    without, punched = (sum(relayed[how]) for how in ("relays, no punching", "relays and punching"))
    report.claim(
        "punching takes away three quarters of what relays carry, over all networks",
        punched < 0.25 * without,
        punched,
        without,
    )


def wire_part(config: Config, stage: Stage = in_memory) -> Summary:
    """A model over libp2p on this machine."""
    report = Report()
    found = stage("libp2p", lambda: over_libp2p(config.seed))
    report.row("two peers over py-libp2p", "a model", None, **found)
    report.claim(
        "a model that was fetched by its content id is the one that was served, and said to be so",
        found["equal"],
        float(found["megabytes"]),
        "equal",
    )
    report.claim(
        "every block of the peer that serves rubbish is dropped and counted",
        found["dropped"] == found["blocks"] - 1,
        int(found["dropped"]),
        int(found["blocks"]) - 1,
    )
    return report.summary({})


STUDY = Study(
    Config,
    (
        Part("protocols", protocols_part, needs=()),
        Part("training", training_part, needs=(DIGITS,)),
        Part("wire", wire_part, needs=(LIBP2P, PYCRDT)),
    ),
    quick=Config(
        seeds=2,
        linked=60,
        rates=(0.3, 0.976),
        sizes=(64,),
        gossips=(16,),
        swarms=(8,),
        swarm_seeds=3,
        splits=1,
        rounds=8,
    ),
    seconds=155,
    pictures=(
        Picture(
            name="lattica",
            file="lattica.png",
            claim=(
                "Who reaches whom across NATs, lookups, replicas and blocks keep to their"
                " closed forms."
            ),
            data="simulated networks: {config.linked} peers behind NATs, Kademlia, replicas, swarms",
            bands=(
                "marks: means of {config.seeds} seeds, of {config.swarm_seeds} for "
                "blocks; bars at direct links: least to largest"
            ),
            headed=False,
        ),
        Picture(
            name="lattica_training",
            file="lattica_training.png",
            claim=(
                "With relays, peers behind NATs train as on the complete graph; with "
                "direct links alone those behind closed NATs stay by themselves, 22 "
                "points worse."
            ),
            data=(
                "digits (scikit-learn), {config.peers} peers behind NATs, Dirichlet "
                "{config.alpha:g}"
            ),
            bands="bands: least to largest of 3 networks and {config.splits} splits",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
