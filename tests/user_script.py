"""What a user writes: run, and read by mypy --strict and by pyright, in test_types.py."""

import jax
import optax  # type: ignore[import-untyped]  # optax says no types

import dflax as dx

key: jax.Array = jax.random.key(0)
data = dx.data.digits()
partition = dx.data.dirichlet(data.labels, clients=10, alpha=0.3, seed=0)
cohorts = dx.participation.dropout(dx.participation.uniform(5), 0.1)
federation = dx.Federation(data, partition, local_steps=2, batch_size=8, participation=cohorts)
model = dx.models.MLP((16,), classes=10)
loss = dx.losses.classification(model.apply)
params = model.init(key, data.example)["params"]
algorithm = dx.server.fedavg(
    loss, optax.sgd(0.1), aggregator=dx.aggregation.median(), channel=dx.channel.lossy(0.1)
)
state = algorithm.init(key, params)
measure = dx.evaluation.server_model(dx.evaluation.on(loss, data.test))
state, history = dx.run(algorithm, state, federation, rounds=4, key=key, evaluate=measure, every=2)
gap: float = dx.topology.spectral_gap(dx.topology.metropolis(dx.topology.ring(10)))
print(history.evaluations["accuracy"].shape, gap > 0)
