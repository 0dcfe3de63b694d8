"""Score through the Open Inference Protocol."""

from serving.protocols.open_inference import OUTPUTS

INFER = "/v2/models/fraud/infer"


def tensor(name, values, datatype="FP64", **more):
    """Return a column as JSON."""
    return {"name": name, "shape": [len(values)], "datatype": datatype, "data": values, **more}


AMOUNT = tensor("TX_AMOUNT", [1])
OF_BYTES = {"name": "TX_AMOUNT", "shape": [1], "datatype": "FP64"}
OF_BYTES["parameters"] = {"binary_data_size": 8}


def infer(client, *inputs, path=INFER, **more):
    return client.post(path, json={"inputs": list(inputs), **more})


def values_of(response):
    """Return the values of each output, after checking that the rows were scored."""
    assert response.status_code == 200, response.text
    return {one["name"]: one["data"] for one in response.json()["outputs"]}


def scored(client, records, path="/score"):
    """Return the outputs that `/score` has for these records."""
    response = client.post(path, json={"records": records})
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    return {name: [result[name] for result in results] for name in OUTPUTS}
