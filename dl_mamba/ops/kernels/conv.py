"""Causal depthwise convolution: programs walk over a span of tokens with the window in registers.

Tokens are counted over the real ones of a row: `order` says where the i-th of them lies, so that a window passes over
padding. Those before the first come from the initial state. `documents` numbers the documents of the counted tokens,
with 0 for the initial state; a tap counts where its token belongs to the document of the window's last one.

Forward reads x and writes y once; backward reads x and dy and writes dx once, W - 1 tokens more for each span, and
W + 1 sums of each channel. Work: 2 W operations forward, 6 W backward, and one exp.
"""

import triton
import triton.language as tl

from dl_mamba.ops.kernels.tiles import sigmoid


@triton.jit
def place_of(order, i, length, HAS_ORDER: tl.constexpr):
    """Where the i-th real token lies."""
    place = i
    if HAS_ORDER:
        place = tl.load(order + i, mask=(i >= 0) & (i < length), other=0).to(tl.int64)
    return place


@triton.jit
def document_of(documents, i, length, HAS_DOCUMENTS: tl.constexpr):
    """The document of the i-th real token."""
    document = 0
    if HAS_DOCUMENTS:
        document = tl.load(documents + i, mask=(i >= 0) & (i < length), other=0)
    return document


@triton.jit
def token_or_state(
    x,
    start,
    place,
    i,
    length,
    columns,
    valid,
    X_TOKEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    W: tl.constexpr,
    HAS_START: tl.constexpr,
):
    """The i-th real token, which lies at `place`; before the first that of the initial state, or zeros."""
    inside = valid & (i >= 0) & (i < length)
    token = tl.load(x + place * X_TOKEN + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_START:
        known = valid & (i < 0) & (i >= 1 - W)
        token += tl.load(start + (i + W - 1) * CHANNELS + columns, mask=known, other=0.0).to(tl.float32)
    return token


@triton.jit
def window_before(
    x,
    start,
    order,
    documents,
    i,
    length,
    columns,
    valid,
    X_TOKEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    W: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
):
    """The W - 1 real tokens before the i-th: values, places, documents."""
    values, places, numbers = (), (), ()
    for k in tl.static_range(W - 1):
        at = i - (W - 1) + k
        place = place_of(order, at, length, HAS_ORDER)
        values = values + (
            token_or_state(x, start, place, at, length, columns, valid, X_TOKEN, CHANNELS, W, HAS_START),
        )
        places = places + (place,)
        numbers = numbers + (document_of(documents, at, length, HAS_DOCUMENTS),)
    return values, places, numbers


@triton.jit
def convolved(values, numbers, taps, offset, k: tl.constexpr, W: tl.constexpr, HAS_DOCUMENTS: tl.constexpr):
    """The sum over the window of the k-th token behind `window_before`."""
    total = offset
    for tap in tl.static_range(W):
        value = values[k + tap]
        if HAS_DOCUMENTS:
            value = tl.where(numbers[k + tap] == numbers[k + W - 1], value, 0.0)
        total += value * taps[tap]
    return total


@triton.jit
def conv_forward(
    x,
    weight,
    bias,
    start,
    order,
    documents,
    counts,
    length,
    y,
    end,
    X_TOKEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    W: tl.constexpr,
    SPAN: tl.constexpr,
    K: tl.constexpr,
    BC: tl.constexpr,
    SILU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
):
    """y (b, l, c), zeros at padding, and the last W - 1 real tokens of the last document (b, W - 1, c)."""
    spans = tl.cdiv(length, SPAN)
    row = (tl.program_id(0) // spans).to(tl.int64)
    first = (tl.program_id(0) % spans).to(tl.int64) * SPAN
    columns = tl.program_id(1) * BC + tl.arange(0, BC)
    valid = columns < CHANNELS
    x += row * length * X_TOKEN
    y += row * length * CHANNELS
    order += row * length
    documents += row * length
    start += row * (W - 1) * CHANNELS
    count = tl.cast(length, tl.int64)
    if HAS_ORDER:
        count = tl.load(counts + row).to(tl.int64)
    offset = tl.zeros((BC,), tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + columns, mask=valid, other=0.0).to(tl.float32)
    taps = ()
    for k in tl.static_range(W):
        taps = taps + (tl.load(weight + k * CHANNELS + columns, mask=valid, other=0.0).to(tl.float32),)
    values, places, numbers = window_before(
        x,
        start,
        order,
        documents,
        first,
        length,
        columns,
        valid,
        X_TOKEN,
        CHANNELS,
        W,
        HAS_START,
        HAS_ORDER,
        HAS_DOCUMENTS,
    )
    for part in range(SPAN // K):
        i = first + part * K
        for k in tl.static_range(K):
            place = place_of(order, i + k, length, HAS_ORDER)
            inside = valid & (i + k < length)
            values = values + (tl.load(x + place * X_TOKEN + columns, mask=inside, other=0.0).to(tl.float32),)
            places = places + (place,)
            numbers = numbers + (document_of(documents, i + k, length, HAS_DOCUMENTS),)
        for k in tl.static_range(K):
            out = convolved(values, numbers, taps, offset, k, W, HAS_DOCUMENTS)
            if SILU:
                out *= sigmoid(out)
            if HAS_ORDER:
                out = tl.where(i + k < count, out, 0.0)
            to = y + places[k + W - 1] * CHANNELS + columns
            tl.store(to, out.to(y.dtype.element_ty), mask=valid & (i + k < length))
        kept, kept_places, kept_numbers = (), (), ()
        for k in tl.static_range(W - 1):
            kept = kept + (values[K + k],)
            kept_places = kept_places + (places[K + k],)
            kept_numbers = kept_numbers + (numbers[K + k],)
        values, places, numbers = kept, kept_places, kept_numbers
    if first + SPAN >= length:
        last = document_of(documents, count - 1, length, HAS_DOCUMENTS)
        window, _, of = window_before(
            x,
            start,
            order,
            documents,
            count,
            length,
            columns,
            valid,
            X_TOKEN,
            CHANNELS,
            W,
            HAS_START,
            HAS_ORDER,
            HAS_DOCUMENTS,
        )
        for k in tl.static_range(W - 1):
            token = window[k]
            if HAS_DOCUMENTS:
                token = tl.where(of[k] == last, token, 0.0)
            to = end + (row * (W - 1) + k) * CHANNELS + columns
            tl.store(to, token.to(end.dtype.element_ty), mask=valid)


@triton.jit
def conv_backward(
    x,
    weight,
    bias,
    start,
    order,
    documents,
    counts,
    dy,
    dend,
    length,
    dx,
    dstart,
    dweight,
    dbias,
    STAGES: tl.constexpr,
    X_TOKEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    W: tl.constexpr,
    SPAN: tl.constexpr,
    K: tl.constexpr,
    BC: tl.constexpr,
    SILU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
):
    """Gradients of x and the initial state, and each span's part of those of the weight and the bias.

    The gradients of SPAN - W + 1 tokens need those of SPAN outputs.
    """
    own: tl.constexpr = SPAN - (W - 1)
    spans = tl.cdiv(length, own)
    row = (tl.program_id(0) // spans).to(tl.int64)
    first = (tl.program_id(0) % spans).to(tl.int64) * own
    columns = tl.program_id(1) * BC + tl.arange(0, BC)
    valid = columns < CHANNELS
    x += row * length * X_TOKEN
    dy += row * length * CHANNELS
    dx += row * length * CHANNELS
    order += row * length
    documents += row * length
    start += row * (W - 1) * CHANNELS
    dend += row * (W - 1) * CHANNELS
    count = tl.cast(length, tl.int64)
    if HAS_ORDER:
        count = tl.load(counts + row).to(tl.int64)
    last = document_of(documents, count - 1, length, HAS_DOCUMENTS)
    offset = tl.zeros((BC,), tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + columns, mask=valid, other=0.0).to(tl.float32)
    zeros = tl.zeros((BC,), tl.float32)
    taps, dtaps, coming = (), (), ()
    for k in tl.static_range(W):
        taps = taps + (tl.load(weight + k * CHANNELS + columns, mask=valid, other=0.0).to(tl.float32),)
        dtaps = dtaps + (zeros,)
    for _ in tl.static_range(W - 1):
        coming = coming + (zeros,)
    doffset = zeros
    values, places, numbers = window_before(
        x,
        start,
        order,
        documents,
        first,
        length,
        columns,
        valid,
        X_TOKEN,
        CHANNELS,
        W,
        HAS_START,
        HAS_ORDER,
        HAS_DOCUMENTS,
    )
    for part in tl.range(0, SPAN // K, num_stages=STAGES):
        i = first + part * K
        douts = ()
        for k in tl.static_range(K):
            place = place_of(order, i + k, length, HAS_ORDER)
            inside = valid & (i + k < length)
            values = values + (tl.load(x + place * X_TOKEN + columns, mask=inside, other=0.0).to(tl.float32),)
            douts = douts + (tl.load(dy + place * CHANNELS + columns, mask=valid & (i + k < count), other=0.0),)
            places = places + (place,)
            numbers = numbers + (document_of(documents, i + k, length, HAS_DOCUMENTS),)
        for k in tl.static_range(K):
            dout = douts[k].to(tl.float32)
            if SILU:
                out = convolved(values, numbers, taps, offset, k, W, HAS_DOCUMENTS)
                opens = sigmoid(out)
                dout *= opens * (1.0 + out * (1.0 - opens))
            counted = tl.where(i + k < first + own, dout, 0.0)
            doffset += counted
            sums, waiting = (), ()
            for tap in tl.static_range(W):
                value, given = values[k + tap], dout
                if HAS_DOCUMENTS:
                    same = numbers[k + tap] == numbers[k + W - 1]
                    value = tl.where(same, value, 0.0)
                    given = tl.where(same, given, 0.0)
                sums = sums + (dtaps[tap] + counted * value,)
                before = coming[tap] if tap < W - 1 else zeros
                waiting = waiting + (before + given * taps[tap],)
            dtaps = sums
            coming = ()
            for tap in tl.static_range(W - 1):
                coming = coming + (waiting[tap + 1],)
            done = i + k - (W - 1)
            dtoken = waiting[0]
            of_end = done - (count - (W - 1))
            ends = (of_end >= 0) & (of_end < W - 1)
            if HAS_DOCUMENTS:
                ends = ends & (numbers[k] == last)
            dtoken += tl.load(dend + of_end * CHANNELS + columns, mask=valid & ends, other=0.0).to(tl.float32)
            inside = (done >= first) & (done < first + own) & (done < length)
            to = dx + places[k] * CHANNELS + columns
            tl.store(to, dtoken.to(dx.dtype.element_ty), mask=valid & inside)
            if HAS_START:
                to = dstart + (row * (W - 1) + done + W - 1) * CHANNELS + columns
                tl.store(to, dtoken.to(dstart.dtype.element_ty), mask=valid & (done < 0))
        kept, kept_places, kept_numbers = (), (), ()
        for k in tl.static_range(W - 1):
            kept = kept + (values[K + k],)
            kept_places = kept_places + (places[K + k],)
            kept_numbers = kept_numbers + (numbers[K + k],)
        values, places, numbers = kept, kept_places, kept_numbers
    to = tl.program_id(0).to(tl.int64)
    for k in tl.static_range(W):
        tl.store(dweight + (to * W + k) * CHANNELS + columns, dtaps[k], mask=valid)
    tl.store(dbias + to * CHANNELS + columns, doffset, mask=valid)
