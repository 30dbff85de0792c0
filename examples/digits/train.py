"""Train the digits example on scikit-learn's digits and write `digits.safetensors` beside this file.

    python examples/digits/train.py

Seeded: the same versions of torch and scikit-learn give the same weights. Prints the accuracy on held-out images.
"""

from pathlib import Path

import torch
from network import Network
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional

EPOCHS = 60


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.25, random_state=0, stratify=labels)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for epoch in range(EPOCHS):
        order = train[torch.randperm(len(train))]
        for rows in order.split(64):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}")
    with torch.inference_mode():
        accuracy = (network.eval()(images[test]).argmax(1) == labels[test]).float().mean().item()
    print(f"accuracy on {len(test)} held-out images: {accuracy:.4f}")
    save_file(network.state_dict(), Path(__file__).with_name("digits.safetensors"))


if __name__ == "__main__":
    main()
