"""Labelled images: boxes become counts.

YOLO, as Roboflow exports it (the traffic scenes are kept in this layout too):

    data.yaml                   names: [cars, motorcycles, …]
    train/images/*.png          train/labels/*.txt      one line an object: class x y width height
    valid/…  test/…             coordinates relative to the image, centre first

also `images/train` and `labels/train`, `images` and `labels` without splits, and the folders that
`data.yaml` names.
COCO: a JSON file with `images`, `annotations`, `categories`: `train/_annotations.coco.json` beside
the images (Roboflow), or `annotations/instances_train2017.json` and `train2017`.
Pascal VOC: an XML file an image: beside the images (Roboflow), or `Annotations/`, `JPEGImages/` and
`ImageSets/Main/train.txt`.

folder.py finds which of them a folder is, and counts; yolo.py, coco.py and voc.py read one each;
counted.py holds what they give. Where a box is and how large is checked, but not kept.
"""
