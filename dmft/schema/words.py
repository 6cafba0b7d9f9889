"""Names in words: what analyses find, and of what; coordinates.

A name is a quantity (`prediction`), perhaps with what was found of it (`prediction_variance`, and of that
`prediction_variance_se`); all parts are read from tables, those of observables from their registry.  All quantities are
numbers without dimension, "1" in the units of UDUNITS, but angles.

One name has one meaning in all results: `<q>_variance` is N Var q, the variance over networks times their width, or its
limit; the variance over networks itself is `<q>_seed_variance`, and averaged over entries `<q>_raw_variance`.
"""

from __future__ import annotations

from collections.abc import Mapping

QUANTITIES = {  # of analyses
    "test_prediction": "prediction f of test samples",
    "preactivation": "preactivation h",
    "alignment": "alignment with the kernel of the limit",
    "cka": "centred kernel alignment with the limit",
    "unbiased_cka": "unbiased centred kernel alignment with the limit",
    "target_alignment": "alignment of the kernel with the targets",
    "distance": "relative distance of one network from the limit",
    "error": "relative distance of the mean over networks from the limit",
    "widest": "relative distance of one network from the mean over the widest",
    "widest_error": "relative distance of the mean over networks from that over the widest",
    "successive": "relative distance of networks of successive widths",
    "successive_error": "relative distance of the means of successive widths",
    "eigenvalue": "eigenvalue of the NTK",
    "power": "share of the targets in the first modes",
    "overlap": "squared overlap of modes of networks and the limit",
    "angle": "principal angle between the first modes of networks and the limit",
    "deformation": "root mean square sine of the angles between the first modes and those of the limit",
    "mode_loss": "training loss in one mode of the limit",
    "network_test_loss": "test loss of the networks",
    "density": "density of a neuron's preactivation",
    "wasserstein": "Wasserstein distance from the law of the limit",
    "kolmogorov_smirnov": "Kolmogorov-Smirnov distance from the law of the limit",
    "mean": "mean of the preactivations",
    "standard_deviation": "standard deviation of the preactivations",
    "excess_kurtosis": "excess kurtosis of the preactivations",
    "gaussian_distance": "largest distance from the Gaussian distribution function",
    "coefficient": "coefficient of the law in 1/N",
}

FOUND = {  # of a quantity, {}
    "mean": "{}: mean over networks",
    "m2": "{}: sum of squared deviations from the mean of the block",
    "comoment": "{}: sum of products of deviations from the mean of the block",
    "seed_variance": "{}: variance over networks",
    "seed_covariance": "{}: covariance over networks",
    "variance": "{}: N times the variance over networks",
    "covariance": "{}: N times the covariance over networks, N to infinity",
    "variance_by_layer": "{}: part of N times the variance that comes from one layer, N to infinity",
    "bias": "{}: N times the deviation of the mean over networks from the limit, N to infinity",
    "std": "{}: standard deviation over networks",
    "excess": "{}: excess over the limit",
    "excess_variance": "{}: part of the excess from the variance of predictions",
    "excess_bias": "{}: part of the excess from the bias of predictions",
    "limit": "{}: limit of infinite width",
    "variance_limit": "{}: N times the variance over networks, predicted for N to infinity",
    "bias_limit": "{}: N times the deviation of the mean, predicted for N to infinity",
    "deviation": "{}: deviation of the mean over networks from the limit",
    "z": "{}: deviation from the limit in standard errors",
    "variance_z": "{}: N times the variance, off the predicted one in standard errors",
    "bias_z": "{}: N times the deviation, off the predicted one in standard errors",
    "error": "{}: distance of the mean over networks from the limit",
    "distance": "{}: distance of one network from the limit, root mean square",
    "raw_variance": "{}: variance over networks, mean over entries",
    "raw_bias_square": "{}: squared deviation of the mean over networks from the limit, mean over entries",
    "variance_ratio": "{}: measured over predicted N Var",
    "bias_ratio": "{}: measured over predicted N bias",
    "variance_overall_ratio": "{}: measured over predicted N Var, all entries",
    "bias_overall_ratio": "{}: measured over predicted N bias, all entries",
    "exponent": "{}: exponent in width",
    "variance_exponent": "{}: exponent of the variance in width",
    "bias_exponent": "{}: exponent of the bias in width",
    "variance_exponent_chi2": "{}: chi squared per degree of freedom of the exponent of the variance",
    "bias_exponent_chi2": "{}: chi squared per degree of freedom of the exponent of the bias",
    "change": "{}: relative distance from initialisation",
    "alignment": "{}: alignment with initialisation",
    "required_width": "{}: width at which one network is within the tolerance",
    "of_mean": "{}: of the mean over networks",
    "infinite": "{}: of the infinite ensemble of networks",
    "ensemble": "{}: of an ensemble of networks",
    "variance_part": "{}: part that an ensemble removes",
    "bias_part": "{}: part that an ensemble does not remove",
    "worth": "{}: width of a single network that is worth as much as the ensemble",
    "variance_part_predicted": "{}: part that an ensemble removes, predicted",
    "bias_part_predicted": "{}: part that an ensemble does not remove, predicted",
    "worth_predicted": "{}: width that an ensemble is worth, predicted",
    "r_hat": "{}: spread of chains over that within them (R-hat)",
    "effective_size": "{}: independent draws that those of all chains are worth",
    "floor": "{}: expected of two samples of one law",
}

NAMES = {  # of variables that are no quantity, and of coordinates
    "error_correlation": "correlation of test errors between two steps",
    "residual_correlation": "correlation of training residuals between two steps",
    "feature_correlation": "correlation of gradients in one feature between two steps",
    "readout_correlation": "product of readout weights of two steps",
    "gradient_correlation": "correlation of gradients over inputs between two steps",
    "forward_correlation": "correlation of forward signals between two steps",
    "backward_correlation": "correlation of backward signals between two steps",
    "data_response": "response of residuals to noise of an earlier step",
    "feature_response": "response of features to noise of an earlier step",
    "forward_response": "response of forward to backward signals of an earlier step",
    "backward_response": "response of backward to forward signals of an earlier step",
    "ensemble_test_loss": "test loss of the average over draws of features and data",
    "test_bias": "test loss: part that no average over draws removes",
    "variance_of_features": "test loss: variance over features",
    "variance_of_data": "test loss: variance over data",
    "variance_of_both": "test loss: variance over features and data together",
    "feature_dual": "dual of the feature kernel, which tilts the law of a neuron",
    "prediction_dual": "dual of the prediction, residual over temperature",
    "action": "action of the saddle point: minus the logarithm of the evidence, over the width",
    "acceptance": "share of proposed networks that the chain accepted",
    "count": "number of networks that count",
    "diverged": "networks that diverged",
    "networks": "number of networks",
    "activation_size": "root mean square of the outputs of a layer",
    "activation_change": "root mean square of the change of the outputs of a layer since initialisation",
    "activation_density": "density of the outputs of a layer",
    "weight_change": "relative change of a parameter since initialisation",
    "measured": "what functions of the user's own return",
    "parameter": "name of the parameter",
    "entry": "entry of what is measured",
    "measure": "name of the function that is measured",
    "module": "name of the layer in its module",
    "edges": "edges of bins of the preactivation",
    "covariance": "covariance of the coefficients",
    "chi2": "chi squared of the fit",
    "p_value": "probability of a larger chi squared",
    "limit_z": "coefficient of 1 off the predicted limit, in standard errors",
    "slope_z": "coefficient of 1/N off the predicted N bias, in standard errors",
    "onset": "time at which the distance from the limit first exceeds the tolerance",
    "onset_early": "time at which the distance plus its standard error first exceeds the tolerance",
    "onset_late": "time at which the distance minus its standard error first exceeds the tolerance",
    "prediction_change": "prediction f of training samples: relative distance from the lazy limit",
    "test_prediction_change": "prediction f of test samples: relative distance from the lazy limit",
    "step": "training step",
    "step_2": "training step",
    "time": "training time, sum of the learning rates",
    "sample": "sample",
    "sample_2": "sample",
    "split": "training or test sample",
    "target": "target y",
    "layer": "hidden layer",
    "attention_layer": "block with attention",
    "position": "position of the output",
    "query": "position that attends",
    "key": "position that is attended to",
    "heads": "attention heads of the network",
    "head_dim": "neurons of an attention head",
    "source_layer": "hidden layer whose draw of neurons fluctuates",
    "output": "output",
    "output_2": "output",
    "width": "width N",
    "depth": "residual blocks L",
    "wider": "width N, the wider of two",
    "narrower": "width N, the narrower of two",
    "narrow": "width N, of all but the widest",
    "seed": "seed index of the network",
    "block": "block of networks",
    "block_size": "networks in a block",
    "neuron": "neuron",
    "member": "seed index of the neuron's network",
    "scramble": "scramble of the particle",
    "ensemble": "number of networks in an ensemble",
    "mode": "mode of the NTK",
    "mode_2": "mode of the NTK of the limit",
    "angle_index": "number of the principal angle",
    "term": "power of 1/N",
    "term_2": "power of 1/N",
    "bin": "bin of the preactivation",
    "edge": "edge of a bin",
    "entry_problem": "problem_id as a whole number",
    "entry_id": "digest of problem and root seed, plus label",
    "problem_id": "problem_id of each result",
    "result_attrs": "attributes of each result, as JSON",
}

UNITS = {"angle": "degree"}


def in_words(name: str, quantities: Mapping[str, str]) -> str | None:
    """A variable or coordinate in words, given those of quantities; None for a name that is none of these."""
    if name in NAMES:
        return NAMES[name]
    if name in quantities:
        return quantities[name]
    if name.endswith("_se"):
        return None if (of := in_words(name.removesuffix("_se"), quantities)) is None else f"{of}: standard error"
    # the longest suffix first: `loss_excess_variance` is no variance of `loss_excess`
    for suffix in sorted(FOUND, key=len, reverse=True):
        if name.endswith(f"_{suffix}") and (of := in_words(name.removesuffix(f"_{suffix}"), quantities)) is not None:
            return FOUND[suffix].format(of)
    return None
