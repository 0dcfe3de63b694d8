"""Values on pages."""

import time

import pytest

from serving.console import rendering


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (5, "just now"),
        (90, "1 min ago"),
        (3700, "61 min ago"),
        (7300, "2 h ago"),
        (2e5, "2 days ago"),
    ],
)
def test_how_long_ago(age, text):
    assert rendering.ago(time.time() - age) == text


def test_what_is_missing_is_a_dash():
    shown = {rendering.NO_VALUE}
    for function in (rendering.number, rendering.count, rendering.percent, rendering.moment):
        shown.add(function(None))
    assert shown == {rendering.NO_VALUE}
    assert rendering.ago(None) == "never"


def test_values_are_escaped():
    shown = rendering.environment().from_string("{{ x }}<a b='{{ x }}'>").render(x="<i>'\"&")
    assert shown == "&lt;i&gt;&#39;&#34;&amp;<a b='&lt;i&gt;&#39;&#34;&amp;'>"


def test_no_template_switches_escaping_off():
    environment = rendering.environment()
    names = environment.list_templates()
    assert len(names) > 10
    for name in names:
        source, _, _ = environment.loader.get_source(environment, name)
        assert "|safe" not in source.replace(" ", "")
        assert "autoescape" not in source


def test_a_template_with_a_name_that_it_lacks_is_an_error():
    with pytest.raises(Exception, match="undefined"):
        rendering.environment().from_string("{{ nothing }}").render()


def test_long_words_may_be_broken_and_are_escaped():
    shown = str(rendering.breakable("A_LONG_<b>_NAME_OF_A_COLUMN 3 <i>"))
    assert shown == "A_<wbr>LONG_<wbr>&lt;b&gt;_<wbr>NAME_<wbr>OF_<wbr>A_<wbr>COLUMN 3 &lt;i&gt;"
    assert str(rendering.breakable("TX_AMOUNT 3")) == "TX_AMOUNT 3"
