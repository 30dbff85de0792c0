"""What a node is like, and what follows from it: settings of K3s, sizes of a pod, the objects and the workload for that node.

`profile.py` reads the description; `sizing.py` turns memory and cores into numbers with their reasons; `k3s_settings.py`,
`objects.py` and `workload.py` write files. The pods of nodes that cannot carry Knative Serving sleep by `torpor up`.
"""
