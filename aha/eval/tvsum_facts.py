"""Facts about the 50 videos of TVSum that its TSV files lack or round.

LENGTHS: video id -> (number of frames, length in seconds) as in `ydata-tvsum50.mat`, in its order (which is also that of the TSV files
and of video_1 .. video_50 in the community's feature files). The info TSV rounds lengths to whole seconds, which moves some frame <->
second borders; with this table both forms of the annotations give the same numbers.
VAL10: the "val" video of each category in UMT (CVPR 2022), kept by UniVTG, QD-DETR and Lighthouse.
"""

LENGTHS: dict[str, tuple[int, float]] = {
    "AwmHb44_ouw": (10597, 353.593),
    "98MoyGZKHXc": (4688, 187.524),
    "J0nA4VgnoCo": (14019, 584.725),
    "gzDbaEs1Rlg": (7210, 288.415),
    "XzYM3PfTM4w": (3327, 111.015),
    "HT5vyqe0Xaw": (9671, 322.711),
    "sTEELN-vY30": (4468, 148.956),
    "vdmoEJ5YbrQ": (9870, 329.352),
    "xwqBXPGE9pQ": (7010, 233.918),
    "akI8YFjEmUw": (3995, 133.306),
    "i3wAGJaaktw": (4700, 156.828),
    "Bhxk-O1Y7Ho": (13511, 450.839),
    "0tmA_C6XwfM": (3532, 141.293),
    "3eYKfiOEJNs": (4853, 194.142),
    "xxdtq8mxegs": (4324, 144.149),
    "WG0MBPpPC6I": (9534, 397.689),
    "Hl-__g2gn_A": (5846, 243.833),
    "Yi4Ij2NM7U4": (9731, 405.467),
    "37rzWOQsNIw": (5742, 191.611),
    "LRw_obCPUt0": (6241, 260.319),
    "cjibtmSLxQ4": (19406, 647.535),
    "b626MiF1ew4": (5661, 235.891),
    "XkqCExn6_Us": (5631, 187.896),
    "GsAD1KT1xo8": (4356, 145.357),
    "PJrm840pAUI": (6580, 274.181),
    "91IHQYk1IQM": (3312, 110.527),
    "RBCABdttQmI": (10917, 364.275),
    "z_6gVvQb2d0": (8281, 276.317),
    "fWutDQy1nnY": (17527, 585.863),
    "4wU_LUjG5Ic": (4005, 167.044),
    "VuWGsYPqAX8": (5412, 216.503),
    "JKpqYvAdIsw": (3802, 152.091),
    "xmEERLqJ2kU": (13365, 445.962),
    "byxOvuiIJV0": (3705, 154.552),
    "_xMr-HKMfVA": (4463, 148.933),
    "WxtbjNsCQ8A": (7959, 265.567),
    "uGu_10sucQo": (4009, 167.044),
    "EE-bNr36nyA": (2941, 98.151),
    "Se3oxnaPsz0": (4165, 138.867),
    "oDXZc0tZe04": (11414, 380.854),
    "qqR6AEXwxoQ": (8073, 269.375),
    "EYqVtI9YWJA": (5939, 198.182),
    "eQu1rNs0an0": (4931, 164.537),
    "JgHubY5Vw3Y": (4304, 143.615),
    "iVt07TCkFM0": (2500, 104.281),
    "E11zDS9XGzg": (15307, 510.235),
    "NyBmCxDoHJU": (4740, 189.614),
    "kLxoNp-UchI": (3896, 130.008),
    "jcoYJXDG9sw": (5971, 199.25),
    "-esJrBWj2d8": (6912, 230.412),
}

CATEGORIES: dict[str, str] = {
    "VT": "changing a vehicle tire", "VU": "getting a vehicle unstuck", "GA": "grooming an animal", "MS": "making a sandwich",
    "PK": "parkour", "PR": "parade", "FM": "flash mob gathering", "BK": "beekeeping", "BT": "attempting a bike trick", "DS": "dog show",
}  # fmt: skip

VAL10: dict[str, str] = {
    "BK": "Se3oxnaPsz0", "BT": "JgHubY5Vw3Y", "DS": "E11zDS9XGzg", "FM": "JKpqYvAdIsw", "GA": "Bhxk-O1Y7Ho",
    "MS": "Yi4Ij2NM7U4", "PK": "cjibtmSLxQ4", "PR": "fWutDQy1nnY", "VT": "J0nA4VgnoCo", "VU": "sTEELN-vY30",
}  # fmt: skip
