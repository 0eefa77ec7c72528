"""docs/published-numbers.md is fresh, and its rows give a reason exactly where they differ."""

import re

import pytest
import torch

from docs.tools import published_numbers as published

ROWS = [row for rows in published.SOURCES.values() for row in rows]


def test_the_page_is_what_the_command_writes():
    assert published.PAGE.read_text(encoding="utf-8") == published.page(), (
        "run: python docs/tools/published_numbers.py"
    )
    assert len(ROWS) >= 25


def test_a_row_has_a_reason_exactly_where_it_is_not_equal():
    for row in ROWS:
        assert published.compared(row)[1] == (row.reason == ""), row


@pytest.mark.parametrize(
    "value, printed, ours",
    [
        (393_216, "0.35M", "0.39M"),
        (245_760, "250K", "250K"),
        (245_760, "251K", "246K"),
        (20_480, "20,480", "20,480"),
        (10_240, "10,420", "10,240"),
        (1_557_611_200, "1542M", "1558M"),
        (100 * 102_400 / 783_252_480, "0.01907%", "0.01307%"),
        (349_208_518_656, "350GB", "350GB"),
        (1.189, "1.2×", "1.2×"),
    ],
)
def test_numbers_are_compared_to_the_digits_printed(value, printed, ours):
    assert published.as_printed(value, printed) == ours


def test_the_known_misprints_are_found():
    text = published.PAGE.read_text(encoding="utf-8")
    for printed, ours in (
        ("10,420", "10,240"),
        ("0.01907%", "0.0130737%"),
        ("0.35M", "393,216"),
        ("0.1%", "7.256%"),
        ("20.2M", "37,748,736"),
    ):
        assert re.search(
            rf"^\|.*\| [^|]*{re.escape(printed)}[^|]* \| [^|]*{ours}[^|]* \| no\. \w",
            text,
            re.MULTILINE,
        ), printed


def test_the_totals_that_are_no_gpts_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        bart = transformers.BartForConditionalGeneration(
            transformers.BartConfig()
        )  # the defaults are BART-large's
        roberta = transformers.RobertaModel(
            transformers.RobertaConfig(
                vocab_size=50265, max_position_embeddings=514, type_vocab_size=1
            )
        )
    totals = [sum(p.numel() for p in model.parameters()) for model in (bart, roberta)]
    assert totals == [published.NO_GPT["BART-large"], published.NO_GPT["RoBERTa-base"]]
