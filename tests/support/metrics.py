"""Read samples from the metrics of a service."""

from prometheus_client.parser import text_string_to_metric_families


def samples(client):
    """Return all samples by name and labels, after checking prefix and documentation."""
    text = client.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    assert all(family.name.startswith("anomaly_vae_") for family in families)
    assert all(family.documentation for family in families)
    return {
        (sample.name.removeprefix("anomaly_vae_"), frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(client, name, **labels):
    """Return the value of a sample, or 0 if it does not exist."""
    return samples(client).get((name, frozenset(labels.items())), 0)


MODEL = {"model": "fraud", "version": ""}
