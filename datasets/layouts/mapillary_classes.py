"""The 65 classes of Mapillary Vistas v1.2, for networks that are used without the data set.

Names, colours and which have instances are those of the `config.json` of the v1.2 package, of which
the last entry, "Unlabeled" at position 65, is ignored (https://www.mapillary.com/dataset/vistas).
"""

from __future__ import annotations

from ..spec import ClassInfo, Color, DatasetSpec

# Group, name, colour, whether single objects are counted; in the order of the ids.
_ENTRIES: tuple[tuple[str, str, Color, bool], ...] = (
    ("animal", "Bird", (165, 42, 42), True),
    ("animal", "Ground Animal", (0, 192, 0), True),
    ("construction", "Curb", (196, 196, 196), False),
    ("construction", "Fence", (190, 153, 153), False),
    ("construction", "Guard Rail", (180, 165, 180), False),
    ("construction", "Barrier", (90, 120, 150), False),
    ("construction", "Wall", (102, 102, 156), False),
    ("construction", "Bike Lane", (128, 64, 255), False),
    ("construction", "Crosswalk - Plain", (140, 140, 200), True),
    ("construction", "Curb Cut", (170, 170, 170), False),
    ("construction", "Parking", (250, 170, 160), False),
    ("construction", "Pedestrian Area", (96, 96, 96), False),
    ("construction", "Rail Track", (230, 150, 140), False),
    ("construction", "Road", (128, 64, 128), False),
    ("construction", "Service Lane", (110, 110, 110), False),
    ("construction", "Sidewalk", (244, 35, 232), False),
    ("construction", "Bridge", (150, 100, 100), False),
    ("construction", "Building", (70, 70, 70), False),
    ("construction", "Tunnel", (150, 120, 90), False),
    ("human", "Person", (220, 20, 60), True),
    ("human", "Bicyclist", (255, 0, 0), True),
    ("human", "Motorcyclist", (255, 0, 100), True),
    ("human", "Other Rider", (255, 0, 200), True),
    ("marking", "Lane Marking - Crosswalk", (200, 128, 128), True),
    ("marking", "Lane Marking - General", (255, 255, 255), False),
    ("nature", "Mountain", (64, 170, 64), False),
    ("nature", "Sand", (230, 160, 50), False),
    ("nature", "Sky", (70, 130, 180), False),
    ("nature", "Snow", (190, 255, 255), False),
    ("nature", "Terrain", (152, 251, 152), False),
    ("nature", "Vegetation", (107, 142, 35), False),
    ("nature", "Water", (0, 170, 30), False),
    ("object", "Banner", (255, 255, 128), True),
    ("object", "Bench", (250, 0, 30), True),
    ("object", "Bike Rack", (100, 140, 180), True),
    ("object", "Billboard", (220, 220, 220), True),
    ("object", "Catch Basin", (220, 128, 128), True),
    ("object", "CCTV Camera", (222, 40, 40), True),
    ("object", "Fire Hydrant", (100, 170, 30), True),
    ("object", "Junction Box", (40, 40, 40), True),
    ("object", "Mailbox", (33, 33, 33), True),
    ("object", "Manhole", (100, 128, 160), True),
    ("object", "Phone Booth", (142, 0, 0), True),
    ("object", "Pothole", (70, 100, 150), False),
    ("object", "Street Light", (210, 170, 100), True),
    ("object", "Pole", (153, 153, 153), True),
    ("object", "Traffic Sign Frame", (128, 128, 128), True),
    ("object", "Utility Pole", (0, 0, 80), True),
    ("object", "Traffic Light", (250, 170, 30), True),
    ("object", "Traffic Sign (Back)", (192, 192, 192), True),
    ("object", "Traffic Sign (Front)", (220, 220, 0), True),
    ("object", "Trash Can", (140, 140, 20), True),
    ("object", "Bicycle", (119, 11, 32), True),
    ("object", "Boat", (150, 0, 255), True),
    ("object", "Bus", (0, 60, 100), True),
    ("object", "Car", (0, 0, 142), True),
    ("object", "Caravan", (0, 0, 90), True),
    ("object", "Motorcycle", (0, 0, 230), True),
    ("object", "On Rails", (0, 80, 100), False),
    ("object", "Other Vehicle", (128, 64, 64), True),
    ("object", "Trailer", (0, 0, 110), True),
    ("object", "Truck", (0, 0, 70), True),
    ("object", "Wheeled Slow", (0, 0, 192), True),
    ("void", "Car Mount", (32, 32, 32), False),
    ("void", "Ego Vehicle", (120, 10, 10), False),
)

MAPILLARY = DatasetSpec(
    name="mapillary-v1.2",
    classes=tuple(
        ClassInfo(name.replace(" ", "_"), color, (position,), group, has_instances)
        for position, (group, name, color, has_instances) in enumerate(_ENTRIES)
    ),
    raw_ignore=len(_ENTRIES),
    known_raw_ids=(len(_ENTRIES),),
)
