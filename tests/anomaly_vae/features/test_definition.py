"""Check the names and reach of window features."""

from anomaly_vae.config.windows import EntityWindows
from anomaly_vae.features import WindowDefinition

CARD = EntityWindows(
    over=("1h", "7d"),
    count=True,
    of={"amount": ("sum", "std")},
    distinct=("shop",),
    since_last=True,
)
SHOP = EntityWindows.model_validate({"over": ["1d"], "risk": {"label": "fraud", "delay": "7d"}})


def test_features_are_named_after_entity_column_statistic_and_length() -> None:
    definition = WindowDefinition({"card": CARD, "shop": SHOP})

    assert definition.names == (
        "card_count_1h",
        "card_amount_sum_1h",
        "card_amount_std_1h",
        "card_shop_distinct_1h",
        "card_count_7d",
        "card_amount_sum_7d",
        "card_amount_std_7d",
        "card_shop_distinct_7d",
        "card_since_last",
        "shop_risk_1d",
    )


def test_reach_includes_the_delay_of_labels() -> None:
    definition = WindowDefinition({"card": CARD, "shop": SHOP})

    assert definition.reach == {"card": 7 * 86_400_000_000, "shop": 8 * 86_400_000_000}


def test_digest_changes_with_the_definition() -> None:
    longer = SHOP.model_copy(update={"over": ("2d",)})

    assert WindowDefinition({"shop": SHOP}).digest != WindowDefinition({"shop": longer}).digest
