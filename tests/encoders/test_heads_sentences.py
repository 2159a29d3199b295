"""The sentence encoder of heads, and heads with parts left out."""

from __future__ import annotations

import pytest
import torch

from vidllm.encoders.heads import NaSVA, TemAdapter
from vidllm.encoders.heads.sentences import SentenceEncoder, pad_words
from vidllm.errors import InputError


def test_an_untrained_encoder_gives_the_mean_word_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    encoder = SentenceEncoder(10, 8, heads=2).eval()
    ids, real = pad_words([[1, 2, 3], [4]])
    out = encoder(ids, real)
    assert torch.allclose(out[0], encoder.table.weight[1:4].mean(0), atol=1e-6)
    torch.nn.init.normal_(encoder.delta.weight)
    alone = encoder(*pad_words([[4]]))
    ids[1, 1:] = 7  # behind the end
    assert torch.allclose(encoder(ids, real)[1], alone[0], atol=1e-6)
    order = encoder(*pad_words([[1, 2, 3], [3, 2, 1]]))
    assert not torch.allclose(order[0], order[1], atol=1e-6)
    assert bool(encoder(*pad_words([[]])).isfinite().all())
    with pytest.raises(InputError, match="the words are"):
        encoder.take_words(torch.zeros(3, 8))
    with pytest.raises(InputError, match="must divide"):
        SentenceEncoder(10, 9, heads=2)


def test_aligners_are_left_out_one_by_one() -> None:
    torch.manual_seed(0)
    video, options = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    for aligners in ("both", "temporal", "semantic", "none"):
        head = TemAdapter(16, 8, 4, 24, aligners=aligners).eval()
        hinge, error = head.losses(video, options, torch.tensor([0, 2]))
        assert bool(hinge > 0) and bool(error > 0) == (aligners in ("both", "temporal"))
    plain = torch.einsum("bkd,btd->bk", options, video) / 5
    assert torch.allclose(head.scores(video, options), plain, atol=1e-5)
    with pytest.raises(InputError, match="without its temporal aligner"):
        head.next_frames(video, options[:, 0])
    with pytest.raises(InputError, match="aligners are"):
        TemAdapter(16, 8, 4, 24, aligners="all")


def test_nasva_without_layers_compares_what_linear_maps_make() -> None:
    torch.manual_seed(0)
    head = NaSVA(6, 5, dim=16, layers=0, heads=4, ffn=24).eval()
    video, sentences = torch.randn(1, 7, 6), torch.randn(1, 3, 5)
    whole = head.similarity(video, sentences)
    assert whole.shape == (1, 1, 3, 7)
    one = head.similarity(video[:, 2:3], sentences[:, :1])
    assert torch.allclose(whole[0, 0, 0, 2], one[0, 0, 0, 0], atol=1e-4)
