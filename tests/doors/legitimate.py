"""Values that look wrong and are right: what no door has to refuse, with the reason."""

import fnmatch

# Types of values: made by the functions that are checked, or as plain as a tuple; no doors of theirs.
RECORDS = {
    "data.ClassLaws",
    "data.Dataset",
    "data.Dealt",
    "data.Partition",
    "gossip.Models",
    "topology.GossipRates",
    "topology.Graph",
    "topology.MixingMatrix",
}

NUMBERS = "None True complex nan inf -1 0.5 3 [] {} array[0] array[2,3,4] array-of-NaN rows"

# "callable(argument)" with wildcards, the kinds of `walk.WRONG`, and why these are right.
LEGITIMATE = [
    ("*(name)", "word digit", "any text is a name"),
    ("run(title)", "word digit", "any text is a title"),
    ("*(seed)", "2^40", "a seed of the host's generators may have 63 bits"),
    ("*(at_once)", "3", "an integer, None by default"),
    # Paths. Where a file must be there, a FileNotFoundError says so.
    ("*(folder)", "word digit", "a folder may have any name"),
    ("*(path)", "word digit", "a file may have any name"),
    ("run(checkpoint)", "word digit", "a folder may have any name"),
    # Numbers without an upper bound, and None where it means a choice.
    ("topology.intensity.*", "3", "r has no upper bound; a share of the run beyond it never comes"),
    ("topology.*(rates)", "3", "rates have no upper bound"),
    ("topology.*(dwell)", "0.5 3", "times have no upper bound"),
    ("topology.uniform(self_weight)", "0.5", "a weight, None by default"),
    ("*.random_neighbours(r)", "3 function", "a number of others, or such a function of the round"),
    ("*.random_neighbours(most)", "3", "an integer, None by default"),
    ("*.random_matching(probability)", "function", "a function of the round may give it"),
    ("data.*(alpha)", "3", "concentrations have no upper bound"),
    ("data.*(beta)", "3", "variances have no upper bound"),
    ("data.*(l2)", "3", "penalties have no upper bound"),
    ("data.*(heterogeneity)", "3", "deviations have no upper bound"),
    ("data.*(noise)", "3", "deviations have no upper bound"),
    ("data.*(condition)", "3", "condition numbers have no upper bound"),
    ("data.*(classes)", "3", "an integer, None by default"),
    ("data.from_indices(examples)", "3", "an integer, None by default"),
    ("data.*(examples)", "rows", "labels of any shape, of which the number is read"),
    ("data.from_arrays(scale)", "-1 3", "any number decodes"),
    ("data.from_arrays(shift)", "-1 0.5 3", "any number decodes"),
    ("data.by_group(groups)", "array-of-words", "groups may be named by words"),
    ("channel.gaussian_noise(deviation)", "3", "deviations have no upper bound"),
    ("aggregation.geometric_median(smoothing)", "3", "distances have no upper bound"),
    ("*(epsilon)", "3", "small terms have no upper bound"),
    ("server.fixed_adam(*)", "3", "small terms have no upper bound"),
    ("server.*(tau)", "3", "small terms have no upper bound"),
    ("*(rho)", "3", "radii and penalties have no upper bound"),
    ("*(penalty)", "3", "penalties have no upper bound"),
    ("*(pull)", "3", "penalties have no upper bound"),
    ("*(radius)", "3", "radii of attacks have no upper bound"),
    ("*(step_size)", "0.5 3", "rates have no upper bound; None by default"),
    ("*(norm)", "3", "lengths have no upper bound"),
    ("*(rate)", "3", "rates have no upper bound"),
    ("*(server_rate)", "3", "rates have no upper bound"),
    ("server.*(gamma)", "0.5 3", "rates have no upper bound; None by default"),
    ("server.fedspeed(relaxed)", "0.5 3", "rates have no upper bound; None by default"),
    ("*(smoothness)", "3", "curvatures have no upper bound"),
    ("decentralized.modest(*)", "None 3", "times have no upper bound; None: for ever, never"),
    ("decentralized.dimat*(matching)", "None", "no matching: plain averages"),
    ("losses.with_l2(strength)", "3", "penalties have no upper bound"),
    ("local.trades(beta)", "3", "penalties have no upper bound"),
    ("matching.verify(tolerance)", "3", "tolerances have no upper bound"),
    ("local.quadratic_objectives(scale)", "3", "factors have no upper bound"),
    ("gossip.*(gradient_rate)", "3", "rates have no upper bound"),
    ("evaluation.*(examples)", "3", "an integer, None by default"),
    ("checkpoint.Checkpoints(every_*)", "0.5 3", "times and counts, None by default"),
    ("server.with_server(clients)", "3", "an integer, None by default"),
    ("models.CNN(channels)", "[] array[0]", "no convolution is a model, too"),
    ("models.MLP(features)", "[] array[0]", "no hidden layer is a model, too"),
    ("*(param_dtype)", "None", "float32"),
    ("local.quadratic_objectives(dtype)", "None", "that of NumPy"),
    ("models.*(padding)", "3", "so many on both sides"),
    ("models.Conv(kernel_size)", "3", "one dimension"),
    # Pytrees of any arrays.
    ("mesh.*(tree)", NUMBERS, "any pytree of arrays and numbers"),
    ("mesh.*(state)", NUMBERS, "any pytree of arrays and numbers"),
    ("mesh.*(source)", NUMBERS, "any pytree of arrays and numbers"),
    # Functions of traced arrays, called within a round: JAX's own errors tell of shapes and types.
    ("data.*_loss(*)", "any", "arrays of a minibatch"),
    ("aggregation.*(stacked)", "any", "the messages of a round"),
    ("aggregation.*(shared)", "any", "arrays of a round"),
    ("aggregation.*_rows(values)", "any", "the messages of a round"),
    ("aggregation.*_rows(present)", "any", "who reports in a round"),
    ("aggregation.squared_distances(weights)", "any", "weights of a round"),
    ("aggregation.kernels(*)", "any", "the path and the shape of a leaf"),
    ("aggregation.rescaled(mixed)", "any", "the models of a round"),
    ("aggregation.rescaled(target)", "any", "variances of a round"),
    ("channel.broadcast(message)", "any", "the message of a round"),
    ("channel.largest(values)", "any", "the message of a round"),
    ("local.distances(first)", "any", "inputs of a minibatch"),
    ("local.distances(second)", "any", "inputs of a minibatch"),
    ("local.large_gradient(*)", "any", "arrays of a round"),
    ("local.large_batches(*)", "any", "arrays of a round"),
    ("local.optimizer_at(*)", "any", "what a factory has checked, and the number of a round"),
    ("local.check_*(name)", "any", "the name of an argument, for a message"),
    ("local.perturbed(*)", "any", "arrays of a round"),
    ("local.proximal_points(*)", "any", "arrays of a round"),
    ("local.travel(*)", "any", "what a factory has checked, and arrays of a round"),
    ("local.adversarial(at)", "any", "a model of a round"),
    ("gather(*)", "any", "arrays of a round"),
    ("scatter(*)", "any", "arrays of a round"),
    ("select(*)", "any", "arrays of a round"),
    ("map_clients(shared)", "any", "arrays of a round"),
    ("map_clients(stacked)", "any", "arrays of a round"),
    ("map_cohort(shared)", "any", "arrays of a round"),
    ("map_cohort(stacked)", "any", "arrays of a round"),
    ("map_cohort(tree)", "any", "arrays of a round"),
    ("map_cohort(cohort)", "any", "arrays of a round"),
    ("weighted_mean(*)", "any", "arrays of a round"),
    ("mean_metrics(*)", "any", "metrics of a round"),
    ("decentralized.probe(*)", "any", "arrays of a round"),
    ("evaluation.distribution(*)", "any", "metrics of a round"),
    ("matching.permute(*)", "any", "arrays of a round"),
    ("matching.fixed_units(*)", "any", "arrays of a round"),
    ("models.attention(*)", "any", "arrays within a model"),
    ("models.*_pool(inputs)", "any", "arrays within a model"),
    ("models.convolve(inputs)", "any", "arrays within a model"),
    ("models.convolve(kernel)", "any", "arrays within a model"),
    ("profile.trace(arguments)", "any", "the arguments of the function"),
    ("sinks.flatten(metrics)", "any", "metrics of a round"),
]


def passes(name: str, argument: str, kind: str) -> bool:
    """Whether the list above lets this value pass."""
    return any(
        matches(f"{name}({argument})", pattern) and (kinds == "any" or kind in kinds.split())
        for pattern, kinds, _ in LEGITIMATE
    )


def matches(argument: str, pattern: str) -> bool:
    """Whether an entry speaks of "callable(argument)"; in brackets it means brackets."""
    return fnmatch.fnmatchcase(argument, pattern)
