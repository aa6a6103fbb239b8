"""Derivatives beyond those an estimator has are refused when taken, however they are taken."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt

T, W = jnp.float32(0.7), jnp.float32(1.3)
PAIR = jnp.stack([T, W])
FIRST = {
    "disarm": vt.DisARM(),
    "arm": vt.ARM(),
    "double": vt.DoubleControlVariates(2),
    "fitted": vt.FittedControlVariates(3),
    "fitted first": vt.FittedControlVariates(3, differentiate="first"),
    "score first": vt.ScoreFunction(2, "leave_one_out", differentiate="first"),
    "local": vt.LocalExpectation(),
    "measure": vt.MeasureValued(),
    "rebar": vt.REBAR(),
    "straight": vt.StraightThrough(),
    "mix": vt.Mix(vt.Enumerate(), vt.Mix(vt.ScoreFunction(), vt.DisARM(), 0.5), 0.3),
}
ALL = {
    "enumerate": vt.Enumerate(),
    "score": vt.ScoreFunction(2, "leave_one_out"),
    "mix": vt.Mix(vt.Enumerate(), vt.ScoreFunction(), 0.3),
}


def of(estimator):
    """A function of the choice's parameter and of one that the term alone depends on."""

    def estimate(t, w):
        def program(t, w):
            pair = dist.Bernoulli(logits=jnp.stack([t, t]))
            z = vt.sample(jax.random.key(0), pair, estimator, name="z")
            return w**3 * (1.0 + 2.0 * z.sum()) ** 2, None

        return vt.surrogate(program)(t, w)[0]

    return estimate


def in_t(fn):
    return lambda t: fn(t, W)


def descent(f):
    return lambda t: jax.lax.scan(lambda c, _: (c - 0.1 * jax.grad(f)(c), None), t, None, 3)[0]


ONCE = {
    "grad": lambda f: jax.grad(in_t(f))(T),
    "grad of jit": lambda f: jax.grad(jax.jit(in_t(f)))(T),
    "jvp": lambda f: jax.jvp(f, (T, W), (T, W)),
    "linearize": lambda f: jax.linearize(in_t(f), T)[1](W),
    "vmap of grad": lambda f: jax.vmap(jax.grad(in_t(f)))(PAIR),
    "grad of vmap": lambda f: jax.grad(lambda x: jax.vmap(in_t(f))(x).sum())(PAIR),
    "jacobian": lambda f: jax.jacrev(jax.vmap(in_t(f)))(PAIR),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(in_t(f)))(T),
    "descent": lambda f: descent(in_t(f))(T),
    "twice in the term alone": lambda f: jax.hessian(f, 1)(T, W),
    "thrice in the term alone": lambda f: jax.grad(jax.hessian(f, 1), 1)(T, W),
}
TWICE = {
    "hessian": lambda f: jax.hessian(in_t(f))(T),
    "hessian of jit": lambda f: jax.hessian(jax.jit(in_t(f)))(T),
    "grad of grad": lambda f: jax.grad(jax.grad(in_t(f)))(T),
    "jvp of grad": lambda f: jax.jvp(jax.grad(in_t(f)), (T,), (W,)),
    "grad of jvp": lambda f: jax.grad(lambda t: jax.jvp(in_t(f), (t,), (W,))[1])(T),
    "jvp of jvp": lambda f: jax.jacfwd(jax.jacfwd(in_t(f)))(T),
    "jvp of compiled grad": lambda f: jax.jvp(jax.jit(jax.grad(in_t(f))), (T,), (W,)),
    "grad of compiled grad": lambda f: jax.grad(jax.jit(jax.grad(in_t(f))))(T),
    "grad of checkpoint": lambda f: jax.grad(jax.checkpoint(jax.grad(in_t(f))))(T),
    "vmap of hessian": lambda f: jax.vmap(jax.hessian(in_t(f)))(PAIR),
    "of both": lambda f: jax.hessian(f, (0, 1))(T, W),
    "mixed": lambda f: jax.jacfwd(jax.grad(f, 0), 1)(T, W),
    "mixed the other way": lambda f: jax.jacfwd(jax.grad(f, 1), 0)(T, W),
    "of descent": lambda f: jax.grad(descent(in_t(f)))(T),
}
ROWS = [(e, how, False) for e in FIRST for how in ("grad", "hessian", "mixed", "of both")]
ROWS += [("disarm", how, False) for how in {**ONCE, **TWICE}]
ROWS += [("mix", how, True) for how in TWICE] + [(e, "hessian", True) for e in ALL]


@pytest.mark.parametrize(("estimator", "how", "every"), sorted({*ROWS}))
def test_orders(estimator, how, every):
    """Traced, not run: what is refused is so before anything is compiled."""
    made = (ALL if every else FIRST)[estimator]
    take = lambda: jax.eval_shape(lambda: {**ONCE, **TWICE}[how](of(made)))
    if every or how in ONCE:
        take()
        return
    name = type(made).__name__
    with pytest.raises(vt.SiteError, match=rf"Site 'z': {name} .*order 1.*order 2.*Fix: "):
        take()


def test_what_is_counted_costs_nothing():
    """The compiled gradient is the same program as of one that is not limited."""
    run = jax.jit(jax.grad(in_t(of(vt.DisARM())))).lower(T)
    assert "vipp_order" in str(jax.make_jaxpr(jax.grad(in_t(of(vt.DisARM()))))(T))
    assert "vipp_order" not in run.as_text()
