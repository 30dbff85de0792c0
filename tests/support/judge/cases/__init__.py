"""The list of calls: every scene with what is asked, and TorchServe 0.12's statuses as known."""

from judge.cases.archives import BARE
from judge.cases.batches import BATCHED
from judge.cases.envelopes import BODY_ENVELOPE, JSON_ENVELOPE, V1, V1_BATCHED, V2, V2_BATCHED, V2_GRPC
from judge.cases.management import MANAGED
from judge.cases.stock import STOCK

SCENES = {
    scene.name: scene
    for scene in [BARE, STOCK, V1, V1_BATCHED, V2, V2_BATCHED, V2_GRPC, JSON_ENVELOPE, BODY_ENVELOPE, BATCHED, MANAGED]
}
