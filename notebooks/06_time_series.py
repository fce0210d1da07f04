# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Time series: forecasting and anomalies with `MambaLayer` alone
#
# A numeric series goes in, numbers come out: no tokens, no embedding. A small network of `MambaResidualBlock` learns
# to forecast several horizons at once, is compared with three named baselines on held-out data, and its errors then
# tell where the series behaves unlike itself.
#
# **The data are synthetic**: the Mackey-Glass equation, a chaotic model of blood cell production (Mackey and Glass,
# *Oscillation and Chaos in Physiological Control Systems*, Science, 1977),
#
# $$\frac{dx}{dt} = \frac{0.2\, x(t - 17)}{1 + x(t - 17)^{10}} - 0.1\, x(t),$$
#
# with noise of 2 % of its standard deviation. Set `DL_MAMBA_SERIES` to a CSV file to use a series of your own: its
# last numeric column is read, and nothing leaves your machine.

# %%
import os

import dl_mamba

FAST = os.environ.get("DL_MAMBA_NOTEBOOK_FAST") == "1"
print("Keras runs on", dl_mamba.BACKEND)

# %%
import keras
import numpy as np
from matplotlib import pyplot

keras.utils.set_random_seed(0)


def mackey_glass(length, seed=0, delay=17, step=0.1):
    """x at whole time units; Euler steps of `step`, the first 500 units left out."""
    rng, per_unit = np.random.default_rng(seed), round(1 / step)
    x = [*(1.2 + 0.2 * rng.normal(size=delay * per_unit))]
    for t in range((length + 500) * per_unit):
        past = x[t]
        x.append(x[-1] + step * (0.2 * past / (1 + past**10) - 0.1 * x[-1]))
    return np.array(x[-length * per_unit :: per_unit])


def read_series(path):
    """The last numeric column of a CSV file with a header."""
    table = np.genfromtxt(path, delimiter=",", skip_header=1)
    return np.atleast_2d(table.T)[-1]


LENGTH = 2000 if FAST else 6000
path = os.environ.get("DL_MAMBA_SERIES")
if path:
    series, unit = read_series(path)[-20_000:], "value (unit of the file)"
else:
    series, unit = mackey_glass(LENGTH), "x (no unit)"
    series = series + 0.02 * series.std() * np.random.default_rng(1).normal(size=len(series))
print(f"{len(series):,} values, synthetic: {not path}")

# %% [markdown]
# ## Data: past, future, and no look ahead
#
# The first 70 % train, the next 10 % choose the epoch, the last 20 % are held out and scored once. Mean and deviation
# come from the training part. At every step the model has seen all values so far and forecasts the next 20.

# %%
WINDOW, HORIZON = 128, 20
cut, held = int(0.7 * len(series)), int(0.8 * len(series))
mean, deviation = series[:cut].mean(), series[:cut].std()
scaled = ((series - mean) / deviation).astype("float32")


def windows(part, stride):
    """Inputs (rows, window, 1) and at each of their steps the next `HORIZON` values (rows, window, horizon)."""
    starts = np.arange(0, len(part) - WINDOW - HORIZON + 1, stride)
    x = np.stack([part[s : s + WINDOW] for s in starts])
    ahead = np.lib.stride_tricks.sliding_window_view(part[1:], HORIZON)
    return x[..., None], np.stack([ahead[s : s + WINDOW] for s in starts])


train, valid = windows(scaled[:cut], 16), windows(scaled[cut:held], 16)
print("inputs", train[0].shape, "targets", train[1].shape)

# %% [markdown]
# ## Model

# %%
values = keras.Input((None, 1))
hidden = keras.layers.Dense(32)(values)
BLOCKS = 1 if FAST else 2
for _ in range(BLOCKS):
    hidden = dl_mamba.MambaResidualBlock(d_model=32, d_state=8, num_layers=BLOCKS)(hidden)
model = keras.Model(values, keras.layers.Dense(HORIZON)(dl_mamba.RMSNorm()(hidden)))

EPOCHS = 1 if FAST else 20
steps = EPOCHS * -(-len(train[0]) // 16)
model.compile(dl_mamba.training.recipe(model, steps=steps, learning_rate=5e-3), "mse")
best = keras.callbacks.EarlyStopping("val_loss", patience=EPOCHS, restore_best_weights=True)
history = model.fit(*train, validation_data=valid, batch_size=16, epochs=EPOCHS, callbacks=[best], verbose=0).history
dl_mamba.viz.plot_learning_curve(history, label="mean squared error (variances)").set_yscale("log")

# %% [markdown]
# ## Against baselines, on held-out data
#
# * **last value**: it stays as it is;
# * **seasonal naive**: the value one period ago; the period is the first peak of the autocorrelation in the training
#   part;
# * **linear AR**: least squares on the last 32 values, fitted for each horizon apart.
#
# All see the same history, and are scored at the same steps: those with at least half a window behind them.

# %%
LAGS = 32
x_test, y_test = windows(scaled[held:], 16)
scored = slice(WINDOW // 2, None)


def lagged(x):
    """(rows, window - LAGS + 1, LAGS): the last values at each step."""
    return np.lib.stride_tricks.sliding_window_view(x[..., 0], LAGS, axis=1)


def period_of(values):
    centred = values - values.mean()
    correlation = np.correlate(centred, centred, "full")[len(values) - 1 :]
    peaks = np.flatnonzero((correlation[1:-1] > correlation[:-2]) & (correlation[1:-1] > correlation[2:])) + 1
    return int(peaks[0]) if len(peaks) else 1


def with_one(a):
    return np.concatenate([a, np.ones((*a.shape[:-1], 1))], axis=-1)


x_train, y_train = train
rows = with_one(lagged(x_train)).reshape(-1, LAGS + 1)
weights = np.linalg.lstsq(rows, y_train[:, LAGS - 1 :].reshape(-1, HORIZON), rcond=None)[0]
period = period_of(scaled[:cut])
back = -(-HORIZON // period) * period  # whole periods, so that the value is known for every horizon
known = np.concatenate([scaled[held - back : held], scaled[held:]])
starts = np.arange(0, len(scaled[held:]) - WINDOW - HORIZON + 1, 16)
seasonal = np.stack([np.lib.stride_tricks.sliding_window_view(known[s + 1 :], HORIZON)[:WINDOW] for s in starts])

forecasts = {
    "last value": np.broadcast_to(x_test, y_test.shape)[:, scored],
    f"seasonal naive, {period} steps": seasonal[:, scored],
    f"linear AR({LAGS})": (with_one(lagged(x_test)) @ weights)[:, WINDOW // 2 - LAGS + 1 :],
    "MambaLayer": model.predict(x_test, batch_size=64, verbose=0)[:, scored],
}
errors = {name: np.sqrt(np.mean((y - y_test[:, scored]) ** 2, axis=(0, 1))) for name, y in forecasts.items()}
print("root mean squared error in standard deviations of the series, held out")
for name, error in errors.items():
    print(f"  {name:26s} 1 ahead {error[0]:.4f}   {HORIZON} ahead {error[-1]:.4f}   mean {error.mean():.4f}")

# %%
figure, axes = pyplot.subplots(1, 2, figsize=(12, 3.8), layout="constrained")
for name, error in errors.items():
    axes[0].semilogy(range(1, HORIZON + 1), error, marker=".", label=name)
axes[0].set(xlabel="horizon (steps)", ylabel="RMSE (standard deviations)", title="held-out error")
axes[0].xaxis.get_major_locator().set_params(integer=True)
axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
axes[0].grid(alpha=0.3)

row, step = 3 % len(x_test), WINDOW - 1
axes[1].plot(range(-40, 0), deviation * x_test[row, -40:, 0] + mean, color="black", label="past")
axes[1].plot(range(HORIZON), deviation * y_test[row, step] + mean, color="grey", linestyle=":", label="what came")
for name in (f"linear AR({LAGS})", "MambaLayer"):
    axes[1].plot(range(HORIZON), deviation * forecasts[name][row, -1] + mean, label=name)
axes[1].set(xlabel="time from now (steps)", ylabel=unit, title="one forecast")
axes[1].legend()
axes[1].grid(alpha=0.3)

# %% [markdown]
# On the synthetic series the linear model is the better one for a single step, over which the equation is nearly
# linear; the further ahead, the more the nonlinear model gains.
#
# ## Anomalies
#
# A model that forecasts well is surprised by what does not belong. The held-out part gets four kinds of faults,
# planted at known places: a spike, a sensor that is stuck, a change of gain, and a stretch that is played backwards.
# The score of a step is the squared error of the forecast that was made 5 steps before, averaged over the last 8
# steps; the threshold is the largest score of the validation part, so that no fault is needed to set it.

# %%
clean = scaled[held:].copy()
faulty, truth = clean.copy(), np.zeros(len(clean), bool)
places = np.linspace(150, len(clean) - 60, 4).astype(int) if len(clean) > 300 else np.linspace(130, 200, 4).astype(int)
SPAN = 12
for place, fault in zip(places, ("spike", "stuck", "gain", "backwards"), strict=True):
    span = slice(place, place + (1 if fault == "spike" else SPAN))
    change = {
        "spike": lambda v: v + 1.5,
        "stuck": lambda v: np.full_like(v, v[0]),
        "gain": lambda v: 1.3 * v,
        "backwards": lambda v: v[::-1],
    }[fault]
    faulty[span] = change(clean[span])
    truth[span] = True


def scores(part, forecast):
    """Mean squared error of the last 8 steps, each forecast `AHEAD` steps before; NaN where the past is too short."""
    error = np.zeros(len(part))
    error[AHEAD:] = (forecast(part)[:-AHEAD, AHEAD - 1] - part[AHEAD:]) ** 2
    smooth = np.convolve(error, np.full(8, 1 / 8))[: len(part)]
    smooth[: LAGS + AHEAD + 8] = np.nan
    return smooth


def linear(part):
    ahead = np.zeros((len(part), HORIZON))
    ahead[LAGS - 1 :] = (with_one(lagged(part[None, :, None])) @ weights)[0]
    return ahead


AHEAD = 5
detectors = {
    "MambaLayer": lambda part: model.predict(part[None, :, None], verbose=0)[0],
    f"linear AR({LAGS})": linear,
}
figure, axes = pyplot.subplots(3, 1, figsize=(12, 6.5), sharex=True, layout="constrained")
axes[0].plot(deviation * faulty + mean, linewidth=0.8, color="black")
axes[0].set(ylabel=unit, title="held-out series with four planted faults (shaded)")
for ax, (name, forecast) in zip(axes[1:], detectors.items(), strict=True):
    score, threshold = scores(faulty, forecast), np.nanmax(scores(scaled[cut:held], forecast))
    found = [bool((score[p : p + SPAN + AHEAD + 8] > threshold).any()) for p in places]
    near = np.convolve(truth, np.ones(SPAN + AHEAD + 8))[: len(truth)] > 0
    false = int(((score > threshold) & ~near).sum())
    print(
        f"{name:16s} faults found: {sum(found)} of 4; steps flagged far from a fault: {false} of {int((~near).sum())}"
    )
    ax.semilogy(score, linewidth=0.8)
    ax.axhline(threshold, color="red", linestyle=":")
    ax.set(ylabel="score (variances)", title=f"{name} (dotted: largest score of the validation part)")
axes[-1].set_xlabel("time (steps from the start of the held-out part)")
for ax in axes:
    for place in places:
        ax.axvspan(place - 1, place + SPAN, color="orange", alpha=0.4)

# %% [markdown]
# Faults as large as these need no fine forecast: on the synthetic series the linear model finds them as well.
#
# ## One value at a time
#
# In service values arrive one by one. The state of the layer is all that has to be kept: a step costs the same after
# ten values and after ten million, and gives what the whole sequence gives.

# %%
layer = dl_mamba.MambaLayer(d_model=4)
arriving = np.random.default_rng(0).normal(size=(1, 50, 4)).astype("float32")
state, outputs = layer.initial_state(batch_size=1), []
for t in range(50):
    y, state = layer(arriving[:, t : t + 1], state=state, return_state=True)
    outputs.append(keras.ops.convert_to_numpy(y)[:, 0])
gap = np.abs(np.stack(outputs, axis=1) - keras.ops.convert_to_numpy(layer(arriving))).max()
print(f"one at a time against all at once: {gap:.1e}")
