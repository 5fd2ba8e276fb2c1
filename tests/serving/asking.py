"""Questions to a client in this process, and what a task's folder holds."""

from workflow.tiny_run import sentences

TEXTS = [text for text, _ in sentences(12)]


def classify(client, task, text, **headers):
    return client.post("/v1/classify", json={"task": task, "text": text}, headers=headers)


def label(client, task, text):
    answer = classify(client, task, text)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]["answers"][0]


def files(folder):
    return {name: (folder / name).read_bytes() for name in ("task.json", "task.safetensors")}


def put(client, name, content):
    return client.put(f"/v1/tasks/{name}", files=content)
