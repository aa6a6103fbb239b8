"""Random plated models with discrete sites, as data, and their evidence by brute force."""

import contextlib
import itertools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

import vipp

PLATES = {"N": (2, -1), "M": (3, -2)}  # size, dim
SUPPORTS = {
    "bernoulli": np.arange(2), "categorical": np.arange(3), "die": np.arange(1, 4),
    "binomial": np.arange(3), "one_hot": np.eye(2), "event": np.arange(2),
    "totals": np.arange(3), "die6": np.arange(1, 7),
}  # fmt: skip
MU = 0.7
PER_LANE = jnp.array([0.5, 2.0])
WITHIN = {"subsample": 2.0, "scale": PER_LANE}  # around all in plate N; what each element counts


def specification(seed):
    """A model as data: its sites, what they and the observations depend on, masks, scales."""
    r, bits, sites = random.Random(seed), 10.0, []
    within = r.choice([None, None, None, *WITHIN])
    choice = [("N",), ("N", "M")] if within else [(), ("N",), ("M",), ("N", "M")]
    for _ in range(r.choice([1, 2, 2, 3, 3])):
        plates = r.choice(choice)
        kind = r.choice(list(SUPPORTS))
        size = lambda: math.prod(PLATES[p][0] for p in plates) * (2 if kind == "event" else 1)
        need = lambda: size() * math.log2(len(SUPPORTS[kind]))
        while need() > bits and len(plates) > (within is not None):
            plates = plates[:-1]
        if need() > bits:
            break
        bits -= need()
        style = r.choice(["plain", "plain", "where", "stack", "vstack"])
        site = {"kind": kind, "plates": plates, "style": style, "mask": r.random() < 0.25}
        sites.append(site | _parents(r, plates, sites, within))
    observed = []
    for _ in range(r.choice([1, 2, 2])):
        plates = r.choice(choice)
        style = r.choice(["plain", "where", "stack", "vstack", "map", "factor"])
        part = {"plates": plates, "style": style, "mask": r.random() < 0.3}
        observed.append(part | _parents(r, plates, sites, within))
    scale = r.choice([None, None, 2.5])
    return {"sites": sites, "observed": observed, "scale": scale, "within": within}


def _parents(r, plates, sites, within):
    parents = []
    for j, site in enumerate(sites):
        inside = set(site["plates"]) <= set(plates)
        if r.random() < 0.6 and (inside or not within):
            how = r.choice(["sum", "max", "first", "matmul", "indexed"])
            if inside and (within or r.random() < 0.9):
                how = r.choice(["same", "same", "looked up"] + ["flipped"] * (not within))
            parents.append((j, how, round(r.uniform(-1.5, 1.5), 2)))
    return {"parents": parents, "shift": round(r.uniform(-1, 1), 2)}


def _shape(plates):
    shape = tuple(PLATES[p][0] if p in plates else 1 for p in ("M", "N"))
    return shape if "M" in plates else shape[1:] if plates else ()


def _number(x, kind):
    if kind == "one_hot":
        return x @ jnp.array([0.3, 1.7])
    return x @ jnp.array([1.0, -0.6]) if kind == "event" else 1.0 * x


def _seen(x, how):
    if how == "same":
        return x
    if how == "looked up":
        return jnp.array([0.3, -0.7, 1.1, 0.2, 0.9, -0.4, 0.6])[jnp.round(x).astype(int)]
    if how == "flipped":
        return jnp.flip(x)
    flat = jnp.reshape(x, -1)
    if how == "indexed":
        return flat[jnp.clip(jnp.round(flat[-1]).astype(int), 0, len(flat) - 1)]
    if how == "matmul":
        return flat @ jnp.linspace(0.5, 1.5, len(flat))
    return {"sum": flat.sum, "max": flat.max, "first": lambda: flat[0]}[how]()


def _distribution(kind, logit):
    if kind == "categorical":
        return dist.Categorical(logits=jnp.stack([0 * logit, logit, 0.5 * logit**2], -1))
    if kind == "one_hot":
        return vipp.OneHotCategorical(logits=jnp.stack([0 * logit, logit], -1))
    if kind == "event":
        return dist.Bernoulli(logits=jnp.stack([logit, 0.3 - logit], -1)).to_event(1)
    if kind in ("die", "die6"):
        return dist.DiscreteUniform(1, 3 if kind == "die" else 6)
    if kind == "totals":
        return dist.Binomial(2 - np.arange(logit.size).reshape(logit.shape) % 2, logits=logit)
    return dist.Binomial(2, logits=logit) if kind == "binomial" else dist.Bernoulli(logits=logit)


def _location(style, parts, shape):
    if style == "stack":
        return jnp.stack([jnp.broadcast_to(p, shape) for p in parts]).sum(0)
    if style == "vstack":
        rows = jnp.vstack([jnp.ravel(p + jnp.zeros(shape)) for p in parts])
        return jnp.reshape(jnp.ones(len(parts)) @ rows, shape)
    if style == "where":
        return sum(jnp.where(p > 0.5, p, -0.2) for p in parts)
    if style == "map" and shape:
        return jax.lax.map(jnp.sin, jnp.broadcast_to(sum(parts), shape))
    return sum(parts)


def model_of(spec):
    """The NumPyro program, of one argument: its kept continuous value comes from outside."""

    def model():
        mu, values = numpyro.sample("mu", dist.Normal(0.0, 2.0)), []
        frames = {p: numpyro.plate(p, size, dim=dim) for p, (size, dim) in PLATES.items()}
        if spec["within"] == "subsample":
            frames["N"] = numpyro.plate("N", 4, subsample_size=2, dim=-1)

        @contextlib.contextmanager
        def inside(part, seed):
            with contextlib.ExitStack() as stack:
                for p in part["plates"]:
                    stack.enter_context(frames[p])
                if spec["within"] == "scale":
                    stack.enter_context(handlers.scale(scale=PER_LANE))
                if part["mask"]:
                    keep = np.random.RandomState(seed).rand(*_shape(part["plates"])) < 0.6
                    stack.enter_context(handlers.mask(mask=jnp.asarray(keep)))
                yield np.asarray(np.random.RandomState(seed + 50).randn(*_shape(part["plates"])))

        for i, site in enumerate(spec["sites"]):
            with inside(site, i) as noise:
                parts = [w * _seen(values[j], how) for j, how, w in site["parents"]]
                logit = site["shift"] + 0.5 * noise
                if parts:
                    logit = logit + _location(site["style"], parts, noise.shape)
                x = numpyro.sample(f"z{i}", _distribution(site["kind"], jnp.asarray(logit)))
            values.append(_number(x, site["kind"]))
        for i, part in enumerate(spec["observed"]):
            with inside(part, 100 + i) as data:
                parts = [w * _seen(values[j], how) for j, how, w in part["parents"]]
                location = part["shift"] + mu + jnp.zeros(data.shape)
                if parts:
                    location = location + _location(part["style"], parts, data.shape)
                if part["style"] == "factor":
                    numpyro.factor(f"x{i}", jnp.sin(location))
                else:
                    numpyro.sample(f"x{i}", dist.Normal(location, 1.0), obs=data)

    return handlers.scale(model, spec["scale"]) if spec["scale"] else model


def assignments(spec):
    """All joint values of the discrete sites, each with a leading axis."""
    per_site = []
    for site in spec["sites"]:
        support, shape = SUPPORTS[site["kind"]], _shape(site["plates"])
        shape = (*shape, 2) if site["kind"] == "event" else shape
        rows = itertools.product(range(len(support)), repeat=math.prod(shape))
        per_site.append(
            [support[np.array(row, int)].reshape((*shape, *support.shape[1:])) for row in rows]
        )
    joint = list(itertools.product(*per_site))
    return {f"z{i}": np.stack([row[i] for row in joint]) for i in range(len(per_site))}


def brute_force(spec, unmasked):
    """The log density of ``mu`` and the data; a masked lane of a discrete site counts as any other."""
    model, within = model_of({**spec, "scale": None, "within": None}), spec["within"]

    def log_joint(values):
        data = {**values, "mu": jnp.asarray(MU)}
        record = handlers.trace(handlers.seed(handlers.substitute(model, data=data), 0)).get_trace()
        total = jnp.zeros(PLATES["N"][0]) if within else 0.0
        for name, site in record.items():
            if site["type"] == "sample" and name != "mu":
                fn = unmasked(site["fn"]) if name.startswith("z") else site["fn"]
                log_prob = fn.log_prob(site["value"])
                lanes = log_prob.reshape(-1, log_prob.shape[-1]).sum(0) if within else log_prob
                total = total + (lanes if within else lanes.sum())
        return total

    values = assignments(spec)
    if not values:
        evidence = log_joint({})
    else:
        terms = jax.jit(jax.vmap(log_joint))(values)
        evidence = jax.nn.logsumexp(terms, axis=0)
        if within:  # every value of an element occurs with all of the others'
            evidence = evidence - math.log(len(terms)) * (1 - 1 / PLATES["N"][0])
    prior = dist.Normal(0.0, 2.0).log_prob(MU)
    evidence = (evidence * WITHIN[within]).sum() if within else evidence
    return float((evidence + prior) * (spec["scale"] or 1.0))
