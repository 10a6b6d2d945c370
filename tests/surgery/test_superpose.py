import keras
import numpy as np
import pytest
import small_models
from conftest import once
from conftest import pairs_once
from conftest import some_once
from small_models import answers
from small_models import call
from small_models import draw_inputs
from small_models import draw_weights

import keras_psp
from keras_psp import contexts
from keras_psp.layers._superposed_attention import projections
from keras_psp.surgery import add_models
from keras_psp.surgery import remove_models

FAMILIES = ("binary", "rotation", "permutation", "hadamard")


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


@pytest.mark.parametrize(
    "family, with_base",
    pairs_once(
        FAMILIES,
        (False, True),
        every=[(family, bool(i % 2)) for i, family in enumerate(FAMILIES)],
    ),
)
def test_kernels_are_bound_and_added_up(family, with_base):
    models = [draw_weights(small_models.sequential(), seed) for seed in range(3)]
    base = draw_weights(small_models.sequential(), 9) if with_base else None
    one = keras_psp.superpose(models, family, base=base)
    for name in ("first", "last"):
        layer = one.get_layer(name)
        kernels = [to_numpy(model.get_layer(name).kernel) for model in models]
        of_base = to_numpy(base.get_layer(name).kernel) if base else 0.0
        expected = sum(
            to_numpy(layer.context.unbind_kernel(kernel - of_base, k))
            for k, kernel in enumerate(kernels)
        )
        np.testing.assert_allclose(to_numpy(layer.kernel), expected, atol=1e-6)
        if base:
            np.testing.assert_array_equal(to_numpy(layer.base_kernel), of_base)
    for k, model in enumerate(models):
        np.testing.assert_array_equal(
            to_numpy(one.get_layer("first").task_bias.bias)[k],
            to_numpy(model.get_layer("first").bias),
        )


def test_projections_are_bound_and_added_up():
    models = [draw_weights(small_models.attentive(), seed) for seed in range(2)]
    one = keras_psp.superpose(models, "rotation")
    for name in ("attention", "groups"):
        every = [projections(model.get_layer(name)) for model in (one, *models)]
        assert len(every[0]) == (5 if name == "groups" else 4)
        for ours, *theirs in zip(*every, strict=True):
            expected = sum(
                to_numpy(ours.context.unbind_kernel(ours.kernel_rows(each.kernel), k))
                for k, each in enumerate(theirs)
            )
            rows = to_numpy(ours.kernel_rows(ours.kernel))
            np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_depthwise_kernels_are_kept_for_each_task():
    models = [draw_weights(small_models.of_all_ranks(), seed) for seed in range(2)]
    one = keras_psp.superpose(models)
    for name in ("depthwise", "depthwise_2"):
        for k, model in enumerate(models):
            kept = [to_numpy(weight)[k] for weight in one.get_layer(name).weights]
            for mine, weight in zip(
                kept, model.get_layer(name).get_weights(), strict=True
            ):
                np.testing.assert_array_equal(mine, weight)


@pytest.mark.parametrize(
    "make", some_once(small_models.MODELS, every=(small_models.sequential,))
)
def test_models_that_do_not_differ_are_read_back_from_their_base(make):
    base = draw_weights(make())
    models = [draw_weights(make()) for _ in range(3)]
    inputs = draw_inputs(base)
    expected = call(base, inputs if len(inputs) > 1 else next(iter(inputs.values())))
    one = keras_psp.superpose(models, base=base)
    for k in range(3):
        y = answers(one, inputs, k)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make, options, with_base",
    [
        (small_models.sequential, {}, False),
        (small_models.convolutional, {}, True),
        # NumPy solves the equations: slow models need no more than one backend.
        once(small_models.convolutional, {"context_over": "channels"}, False),
        once(small_models.residual, {}, True),
        once(small_models.nested, {}, False),
        once(small_models.attentive, {}, True),
        once(small_models.of_all_ranks, {}, False),
    ],
)
def test_data_fit_the_answers(make, options, with_base):
    """Two tasks and few data: the fit is nearly exact, the sum is not."""
    models = [draw_weights(make(), seed) for seed in (1, 2)]
    base = draw_weights(make(), 3) if with_base else None
    data = [draw_inputs(models[0], 3, seed) for seed in (4, 5)]

    def error(one):
        apart = [
            answers(one, x, k) - call(model, *x.values())
            for k, (model, x) in enumerate(zip(models, data, strict=True))
        ]
        return np.sqrt(np.mean(np.square(apart)))

    options = {"context": "rotation", "base": base, **options}
    summed = error(keras_psp.superpose(models, **options))
    fitted = error(keras_psp.superpose(models, data=data, ridge=1e-6, **options))
    assert fitted < 0.5 * summed


@pytest.mark.parametrize("with_base", [False, True])
def test_a_layer_is_the_least_squares_solution(with_base):
    """Of the inputs that the layer before it gives, in the superposed model."""

    def make(seed):
        layers = [
            keras.Input((5,), name="x"),
            keras.layers.Dense(4, activation="tanh", name="first"),
            keras.layers.Dense(2, use_bias=False, name="last"),
        ]
        return draw_weights(keras.Sequential(layers), seed)

    models = [make(seed) for seed in (1, 2, 3)]
    base = make(9) if with_base else None
    # Tasks count alike, however many examples they have.
    data = [draw_inputs(models[0], n, n)["x"] for n in (10, 20, 30)]
    one = keras_psp.superpose(models, "rotation", base=base, data=data, ridge=0.1)
    first, last = one.get_layer("first"), one.get_layer("last")
    of_base = to_numpy(base.get_layer("last").kernel) if base else np.zeros((4, 2))
    rows, wanted = [], []
    for k, (x, model) in enumerate(zip(data, models, strict=True)):
        here, there = to_numpy(first(x, k)), to_numpy(model.get_layer("first")(x))
        own = to_numpy(model.get_layer("last").kernel)
        context = to_numpy(last.context(np.eye(4, dtype="float32"), k))
        ridge = np.sqrt(0.1 * np.mean(np.square(here))) * np.eye(4)
        scale = 1 / np.sqrt(len(x))
        rows.append(scale * np.concatenate([here @ context, here], axis=1))
        wanted.append(scale * (there @ own - here @ of_base))
        rows.append(np.concatenate([ridge @ context, ridge], axis=1))
        wanted.append(ridge @ (own - of_base))
        rows.append(np.concatenate([0 * ridge, ridge], axis=1))
        wanted.append(np.zeros((4, 2)))
    columns = 8 if with_base else 4
    expected = np.linalg.lstsq(
        np.concatenate(rows)[:, :columns], np.concatenate(wanted), rcond=None
    )[0]
    kernels = [to_numpy(last.kernel)]
    if with_base:
        kernels.append(to_numpy(last.base_kernel) - of_base)
    np.testing.assert_allclose(np.concatenate(kernels), expected, rtol=1e-3, atol=1e-4)


def test_a_layer_called_twice_is_fitted_to_both():
    """Four unknowns, of which each of the calls alone shows three."""

    def make():
        a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
        both = keras.layers.Dense(4, name="both")
        return draw_weights(keras.Model({"a": a, "b": b}, both(a) + 2.0 * both(b)))

    models = [make(), make()]
    data = [draw_inputs(models[0], 3, seed) for seed in (4, 4)]
    one = keras_psp.superpose(models, "identity", data=data, ridge=0.0)
    np.testing.assert_allclose(
        to_numpy(one.get_layer("both").kernel),
        to_numpy(models[0].get_layer("both").kernel),
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_large_ridge_pulls_to_the_mean_of_the_bound_kernels():
    models = [draw_weights(small_models.sequential(), seed) for seed in (1, 2)]
    data = [draw_inputs(models[0], 8, seed)["x"] for seed in (3, 3)]
    fitted = keras_psp.superpose(models, data=data, ridge=1e6).get_layer("first")
    summed = keras_psp.superpose(models).get_layer("first")
    np.testing.assert_allclose(
        to_numpy(fitted.kernel), to_numpy(summed.kernel) / 2, rtol=1e-3, atol=1e-4
    )


def test_data_in_batches_or_by_name_give_the_same():
    models = [draw_weights(small_models.sequential(), seed) for seed in (1, 2)]
    data = [draw_inputs(models[0], 8, seed)["x"] for seed in (3, 4)]
    kernels = [
        to_numpy(keras_psp.superpose(models, data=given).get_layer("last").kernel)
        for given in (
            data,
            [{"x": x} for x in data],
            [[x[:3], x[3:]] for x in data],
        )
    ]
    for kernel in kernels[1:]:
        np.testing.assert_allclose(kernel, kernels[0], rtol=1e-5, atol=1e-6)


def test_it_is_saved_and_extracted(tmp_path):
    models = [draw_weights(small_models.convolutional(), seed) for seed in (1, 2)]
    one = keras_psp.superpose(models, base=models[0])
    x = draw_inputs(models[0])["image"]
    one.save(tmp_path / "one.keras")
    loaded = keras.models.load_model(tmp_path / "one.keras")
    for k in range(2):
        y = answers(one, {"image": x}, k)
        np.testing.assert_allclose(answers(loaded, {"image": x}, k), y, atol=1e-6)
        plain = call(keras_psp.extract(one, k), x)
        np.testing.assert_allclose(plain, y, rtol=1e-5, atol=1e-5)


def test_an_example_of_a_context_gives_every_layer_a_seed_of_its_own():
    models = [draw_weights(small_models.sequential(), seed) for seed in (1, 2)]
    signs = [
        keras_psp.superpose(models, contexts.Binary(2, seed=seed)).get_layer("first")
        for seed in (0, 1)
    ]
    first, second = (to_numpy(layer.context.contexts) for layer in signs)
    assert (first != second).any()


def test_bad_input():
    models = [small_models.sequential() for _ in range(2)]
    for few in ([], models[:1], models[0]):
        with pytest.raises(ValueError, match="list of at least two Keras models"):
            keras_psp.superpose(few)
    with pytest.raises(TypeError, match="must be a Keras model"):
        keras_psp.superpose([models[0], None])
    with pytest.raises(ValueError, match="must hold inputs for each"):
        keras_psp.superpose(models, data=[np.zeros((2, 5))])
    with pytest.raises(ValueError, match="first layer that differs is 'first'"):
        keras_psp.superpose([models[0], small_models.nested()])
    other = small_models.sequential()
    other.get_layer("last").activation = keras.activations.relu
    with pytest.raises(ValueError, match="first layer that differs is 'last'"):
        keras_psp.superpose([models[0], other])
    with pytest.raises(ValueError, match="first layer that differs is 'first'"):
        keras_psp.superpose(models, base=small_models.nested())
    with pytest.raises(ValueError, match="and a context of 3 tasks"):
        keras_psp.superpose(models, contexts.Binary(3))
    normalized = [
        draw_weights(
            keras.Sequential(
                [
                    keras.Input((4,)),
                    keras.layers.SpectralNormalization(
                        keras.layers.Dense(3), name="normal"
                    ),
                    keras.layers.Dense(2),
                ]
            ),
            seed,
        )
        for seed in (1, 2)
    ]
    with pytest.raises(ValueError, match="SpectralNorm.*whose 'normal' differ"):
        keras_psp.superpose(normalized)
    quantized = small_models.sequential()
    quantized.get_layer("last").quantize("int8")
    for given, base in (
        ([models[0], quantized], None),
        ([quantized, quantized], None),
        (models, quantized),
    ):
        with pytest.raises(ValueError, match="layer that is quantized.*'last'"):
            keras_psp.superpose(given, base=base)


def test_models_that_are_connected_otherwise_are_refused():
    def make(kind):
        x = keras.Input((4,), name="x")
        first, second = keras.layers.Dense(4), keras.layers.Dense(4)
        y = first(x)
        if kind == 0:
            return keras.Model(x, second(y))
        if kind == 1:
            return keras.Model(x, second(x) + y)
        return keras.Model(x, second(y) * float(kind))

    keras_psp.superpose([make(2), make(2)])
    for kinds in ((0, 1), (0, 2), (2, 3)):
        with pytest.raises(ValueError, match="the same, but.*are called otherwise"):
            keras_psp.superpose(list(map(make, kinds)))


def test_names_that_keras_gives_do_not_matter():
    def make(seed):
        layers = [
            keras.Input((4,)),
            keras.layers.Dense(4, activation=keras.layers.LeakyReLU(0.3)),
            keras.layers.Dense(2),
        ]
        return draw_weights(keras.Sequential(layers), seed)

    models = [make(seed) for seed in (1, 2)]
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    one = keras_psp.superpose(models, base=models[0], data=[x, x])
    y = answers(one, {"input": x}, 0)
    assert np.abs(y - call(models[0], x)).max() < 0.5


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_low_precision_is_fitted_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    try:
        models = [draw_weights(small_models.sequential(), seed) for seed in (1, 2)]
        data = [200 * draw_inputs(models[0], 8, seed)["x"] for seed in (3, 4)]
        one = keras_psp.superpose(models, data=data)
    finally:
        keras.config.set_dtype_policy("float32")
    for layer in (one.get_layer("first"), one.get_layer("last")):
        assert np.isfinite(to_numpy(layer.kernel)).all()


def test_inputs_of_zeros_leave_the_mean_of_the_bound_kernels():
    models = [draw_weights(small_models.sequential(), seed) for seed in (1, 2)]
    zeros = np.zeros((4, 5), "float32")
    fitted = keras_psp.superpose(models, data=[zeros, zeros]).get_layer("first")
    summed = keras_psp.superpose(models).get_layer("first")
    np.testing.assert_allclose(
        to_numpy(fitted.kernel), to_numpy(summed.kernel) / 2, rtol=1e-5, atol=1e-6
    )


X = np.ones((2, 5), "float32")


@pytest.mark.parametrize(
    "data, error, message",
    [
        (X[:0], ValueError, "at least one example"),
        ([], ValueError, "at least one example"),
        ({"y": X}, ValueError, r"the inputs \['x'\]. Received: \['y'\]"),
        ((X, X), ValueError, "two batches and as"),
        (X * np.nan, ValueError, "must be finite"),
        ("digits", TypeError, "must hold arrays.*of type str"),
        (3, TypeError, "must hold arrays.*of type int"),
    ],
)
def test_bad_data(data, error, message):
    models = [small_models.sequential() for _ in range(2)]
    with pytest.raises(error, match=message):
        keras_psp.superpose(models, data=[data, data])
    with pytest.raises(ValueError, match="`ridge` must be"):
        keras_psp.superpose(models, data=[X, X], ridge=-1.0)
    with pytest.raises(ValueError, match="all inputs of 'first'.*ridge=0.0"):
        keras_psp.superpose(models, "identity", data=[X, X], ridge=0.0)


@pytest.mark.once
@pytest.mark.parametrize("options", [{}, {"bits": 8}, {"budget": 3.0}])
def test_models_by_name_are_tasks_with_names(options):
    models = [draw_weights(small_models.sequential(), seed) for seed in range(3)]
    x = draw_inputs(models[0])
    data = {"tokyo": {name: 2 * each for name, each in x.items()}, "paris": x}
    named = dict(zip(("paris", "tokyo"), models, strict=False))
    one = keras_psp.superpose(named, base=models[2], data=data, **options)
    assert one.task_names == ("paris", "tokyo")
    in_order = [data["paris"], data["tokyo"]]
    same = keras_psp.superpose(models[:2], base=models[2], data=in_order, **options)
    for task, name in enumerate(named):
        given = np.array([name] * len(next(iter(x.values()))))
        found = one.predict({**x, "task": given}, verbose=0)
        np.testing.assert_array_equal(found, answers(same, x, task))
    add_models(one, {"berlin": models[2]}, data={"berlin": x})
    assert one.task_names == ("paris", "tokyo", "berlin")
    for bad, message in (
        ([models[0]], "tasks of the model have names"),
        ({"paris": models[0]}, "name of its own"),
        ({}, "`models` must not be empty"),
    ):
        with pytest.raises(ValueError, match=message):
            add_models(one, bad)
    with pytest.raises(ValueError, match="Unknown task.*'rome'"):
        remove_models(one, {"rome": models[2]})
    remove_models(one, {"berlin": models[2]})
    assert one.task_names == ("paris", "tokyo")
    with pytest.raises(ValueError, match="The tasks of the model have no names"):
        add_models(same, {"berlin": models[2]})
    with pytest.raises(ValueError, match="'rome' is unknown"):
        keras_psp.superpose(named, data={"paris": x, "rome": x})
    with pytest.raises(ValueError, match="where the tasks have names"):
        keras_psp.superpose(models, data={"paris": x})
