"""The form of every result: names, dimensions, coordinates, attributes.

dims    step (0..T, observables before the update of that step); sample (training, then test); layer (1..L);
        sample_2 and step_2 for the second index of kernels; output, where targets have that axis, and output_2;
        ensembles lead with width, seed; moments with width, block
coords  time = sum of the learning rates before a step on `step` (never an index: float joins drop points silently);
        split ("train" or "test") and target on `sample`; of networks, blocks of them and particles entry_problem and
        entry_id, which tell them apart after Datasets were joined (`dmft.schema.identity`)
vars    prediction(step, sample)                               f, centered if the network is
        loss(step), test_loss(step)                            mean over training / test samples of ell(f, y)
        accuracy(step), test_accuracy(step)                    share classified correctly: with the losses for classes,
                                                               and on request where targets are classes
        sharpness(step), on request                            largest eigenvalue of the Hessian of the training loss
                                                               in the metric of its descent (`dmft.specs.curvature`)
        feature_kernel(layer, step, sample, sample_2)          Phi^l = <phi(h^l) phi(h^l)>
        gradient_kernel(layer, step, sample, sample_2)         G^l = <g^l g^l>,  g^l = gamma0 N df/dh^l
        ntk(step, sample, sample_2)                            K = sum_l G^{l+1} Phi^l
            with several outputs: prediction(step, sample, output), gradient_kernel(..., sample, output, sample_2,
            output_2), and ntk alike
        preactivation_kernel(layer, step, sample, sample_2), participation_ratio(layer, step), on request
        feature_kernel_two_time, gradient_kernel_two_time (layer, step, sample, step_2, sample_2), on request
        <name>_se                                              standard error of the limit's Monte-Carlo average
        ensembles: diverged(width, seed), where networks diverged: they are nan and count nowhere
        networks that are any module also: activation_size, activation_change (width, seed, layer, step), and
            activation_density with a dimension bin, of named layers (coordinate module); weight_change(width, seed,
            step, parameter); measured(width, seed, step, entry), of functions of the user's own
        moments (networks that are not kept): of every block of networks their count(width, block), and of how many that
            diverged(width, block) and do not count; <name>_mean and <name>_m2, the sum of squared deviations from that
            mean; prediction_comoment(width, block, step, sample, step_2, sample_2), sums of products, on request
        fluctuations: <name>_variance = lim N Var, <name>_bias = lim N (E q_N - q_infinity), with the dimensions of
            <name>; <name>_variance_by_layer(source_layer, ...), prediction_covariance(step, sample, step_2, sample_2),
            on request; each with its _se
        statistics of an ensemble: the variables listed in `comparisons.statistics`, with the dimension width
        expansions at a width: the variables listed in `dmft.finite_width.expansion.at_width`, with the dimension width
        comparisons: the variables listed in `comparisons.compare`, with the dimension width
        single neurons: preactivation(layer, step, sample, neuron), h^l; of the limit those of its particles, with the
            coordinate scramble(neuron); of networks (width, ...), as many neurons of every width, with the coordinate
            member(width, neuron), the seed index of the network
        adaptive kernels: what training ends with, without steps: feature_kernel(layer, sample, sample_2),
            prediction(sample), losses, and of networks that follow gradients gradient_kernel and ntk; prediction_dual
            (sample), r, and feature_dual(layer, sample, sample_2), zero for test samples, which have no duals; action
            (a number): `dmft.adaptive_kernels`
        posteriors of networks: means over the draws of a chain, (width, seed, ...) without steps, and their
            acceptance(width, seed); <name>_se, <name>_r_hat and <name>_effective_size of all chains, (width, ...)
        derivatives of a loss of the limit: value, a number, and gradient(parameter); of a search for the best: value
            (iteration), number and gradient (iteration, parameter)
        limits of models of random data: losses, correlations and responses of two steps (step, step_2) and, of layers,
            (layer, step, step_2), parts of the test loss (step): `dmft.random_data.solve`; the width of their networks
            is a scale, by which all sizes are multiplied
        Each is described in a file of `dmft.schema.observed`; a user's own are recorded alike (`dmft.observable`)
attrs   schema, kind ("limit", "depth_limit", "fluctuations", "expansion", "ensemble", "moments", "statistics",
        "comparison", "adaptive_kernel", "posterior", "gradient", "optimum", "particles" or "neurons"), problem (JSON
        without the data), problem_id, producer, version, dtype, device, seed, result, created, and the numerical
        settings of the producer; of every variable and coordinate long_name and units (`dmft.schema.labels`)
"""

from dmft.errors import SchemaError
from dmft.schema.arguments import (
    OBSERVABLES,
    between_steps,
    need,
    observables,
    observed_samples,
    require_known,
    require_no_positions,
    saved_steps,
)
from dmft.schema.build import build, exact
from dmft.schema.formulas import digests
from dmft.schema.kinds import BY_WIDTH, KINDS, MOMENTS, OF_MODULES, TOTALS, dims
from dmft.schema.observable import BACKWARD, HESSIAN, OUTPUT, PREDICTIONS, Observable
from dmft.schema.predictions import (
    Averages,
    following,
    held,
    losses,
    metrics,
    observed_loss,
    of_eigenvalues,
    of_predictions,
    splits,
)
from dmft.schema.registry import in_tables, kernels, observable, quantities, register, registered
from dmft.schema.seen import Seen
from dmft.schema.validate import (
    ATTRIBUTES,
    SCHEMA,
    check,
    require_same_labels,
    require_same_problem,
    restored,
    theory_attrs,
    validate,
)

# relative rounding of numbers by the name of their dtype; of tf32 and bf16, that of the factors of products
ROUNDING = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7}

__all__ = [
    "ATTRIBUTES",
    "BACKWARD",
    "BY_WIDTH",
    "HESSIAN",
    "KINDS",
    "MOMENTS",
    "OBSERVABLES",
    "OF_MODULES",
    "OUTPUT",
    "PREDICTIONS",
    "ROUNDING",
    "SCHEMA",
    "TOTALS",
    "Averages",
    "Observable",
    "SchemaError",
    "Seen",
    "between_steps",
    "build",
    "check",
    "digests",
    "dims",
    "exact",
    "following",
    "held",
    "in_tables",
    "kernels",
    "losses",
    "metrics",
    "need",
    "observable",
    "observables",
    "observed_loss",
    "observed_samples",
    "of_eigenvalues",
    "of_predictions",
    "quantities",
    "register",
    "registered",
    "require_known",
    "require_no_positions",
    "require_same_labels",
    "require_same_problem",
    "restored",
    "saved_steps",
    "splits",
    "theory_attrs",
    "validate",
]
