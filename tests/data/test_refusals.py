"""What a data set is read as, or refused for: a table of the ways in which people keep their images.

Of what is read, nothing may be left out without being named.
"""

import os
import sys
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from dinojax.data.headers import list_skipped
from dinojax.data.opening import open_images
from dinojax.data.reading import read_records
from dinojax.errors import RunError, UsageError
from tests.data.layouts import FOLDER, IMAGE, Layout, Link, classes, images, radimagenet, table, unnamed, write

NFC, NFD = (unicodedata.normalize(form, "bösartig") for form in ("NFC", "NFD"))
TWO = images("1.png", "2.png")
SIX = images(*(f"{number}.png" for number in range(1, 7)))
KNEE = ("images/{i}_sagittal_19.000000.png",) * 2


class Refused(NamedTuple):
    """An error, and what its line names."""

    error: type[RunError]
    parts: tuple[str, ...]


class Read(NamedTuple):
    """What is read, as far as it is said here."""

    reader: str
    classes: tuple[str, ...] = ()
    images: int = 0
    patients: tuple[str, ...] | None = None
    source: str = ""
    left_out: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    folds: int = 0
    splits: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    hint: str = ""
    tables: int = 0
    """That were read."""


class Case(NamedTuple):
    """A folder, the options that it is read with, and what is expected."""

    layout: Layout
    expected: Read | Refused
    options: dict[str, Any] = {}  # noqa: RUF012
    data: str = ""
    """Below the folder."""


def wrong(*parts: str) -> Refused:
    return Refused(RunError, parts)


def unusable(*parts: str) -> Refused:
    return Refused(UsageError, parts)


FOLDS = "RadImageNet folds (dataframe/)"
AB = ("a", "b")
MANIFEST = "/manifest.csv"

FOLD_FILES = {
    "acl": Case(
        radimagenet(
            "{split}_fold{fold}.csv",
            "filename,acl_label",
            ("images/{i}_sagittal_19.000000.png,no", "images/{i}_sagittal_19.000000.png,yes"),
            5,
            KNEE,
        ),
        Read(FOLDS, ("no", "yes"), 6, tuple("012345"), "the file names (RadImageNet acl)", folds=5, tables=15),
    ),
    "meniscus": Case(
        radimagenet(
            "meniscus_{split}_fold{fold}.csv",
            "img_dir,label",
            ("images/{i}_sagittal_19.000000.png,n", "images/{i}_sagittal_19.000000.png,p"),
            5,
            KNEE,
        ),
        Read(FOLDS, ("n", "p"), 6, tuple("012345"), "the file names (RadImageNet meniscus)", folds=5, tables=15),
    ),
    "thyroid": Case(
        radimagenet(
            "thyroid_{split}_fold{fold}.csv",
            "img_dir,label",
            ("images/31{i}_1.jpg,benign", "images/31{i}_1.jpg,malignant"),
            5,
            ("images/31{i}_1.jpg",) * 2,
        ),
        Read(
            *(FOLDS, ("benign", "malignant"), 6, tuple(f"31{i}" for i in range(6))),
            *("the file names (RadImageNet thyroid)",),
            folds=5,
            tables=15,
        ),
    ),
    "breast": Case(
        radimagenet(
            "breast_{split}_fold{fold}.csv",
            "filename,label",
            ("images/normal ({i}).png,benign", "images/malignant ({i}).png,malignant"),
            5,
            ("images/normal ({i}).png", "images/malignant ({i}).png"),
        ),
        Read(FOLDS, ("benign", "malignant"), 6, folds=5, tables=15),
    ),
    "covid19": Case(
        radimagenet(
            "covid19_{split}.csv",
            ",filename,label",
            ("{n},images/Bozhou_P1{i}-00_0313.png,no", "{n},images/Bozhou_P1{i}-00_0313.png,yes"),
            0,
            ("images/Bozhou_P1{i}-00_0313.png",) * 2,
        ),
        Read(
            *(FOLDS, ("no", "yes"), 6, tuple(f"Bozhou_P1{i}" for i in range(6))),
            *("the file names (RadImageNet covid19)",),
            unread=("1 (unnamed)",),
            folds=1,
            tables=3,
        ),
    ),
    "pneumonia": Case(
        radimagenet(
            "{split}.csv",
            ",filename,Target,label",
            ("{n},images/{i}.png,0,no", "{n},images/{i}.png,1,yes"),
            0,
        ),
        Read(FOLDS, ("no", "yes"), 6, unread=("1 (unnamed)", "Target"), folds=1, tables=3),
    ),
    "hemorrhage": Case(
        radimagenet(
            "hemorrhage_{split}.csv", "pid,label,dir", ("ID_{i},no,images/{i}.png", "ID_{i},yes,images/{i}.png"), 0
        ),
        Read(FOLDS, ("no", "yes"), 6, tuple(f"ID_{i}" for i in range(6)), "column pid", folds=1, tables=3),
    ),
    "sarscovid2": Case(
        radimagenet(
            "sarscovid2_{split}.csv",
            ",imgpath,pid,label,filename",
            ("{n},/raid/{i}.png,P{i},no,images/{i}.png", "{n},/raid/{i}.png,P{i},yes,images/{i}.png"),
            0,
        ),
        Read(
            *(FOLDS, ("no", "yes"), 6, tuple(f"P{i}" for i in range(6)), "column pid"),
            unread=("1 (unnamed)", "imgpath"),
            folds=1,
            tables=3,
        ),
    ),
    "acl, patients by an expression": Case(
        radimagenet(
            "acl_{split}_fold{fold}.csv",
            "filename,acl_label",
            ("images/{i}_sagittal_19.000000.png,no", "images/{i}_sagittal_19.000000.png,yes"),
            1,
            KNEE,
        ),
        Read(FOLDS, ("no", "yes"), 6, ("19.",), "--group_regex", folds=1, tables=3),
        {"group_regex": r"_(19\.)"},
    ),
    "folds with images that none lists": Case(
        {
            **radimagenet("x_{split}.csv", "filename,label", ("images/{i}.png,no", "images/{i}.png,yes"), 0),
            **images("images/7.png", "figures/1.png"),
            "dataframe/notes.md": "",
        },
        Read(FOLDS, ("no", "yes"), 6, folds=1, tables=3, left_out=("2 images that no table lists", "1 .md")),
    ),
    "unknown fold files": Case(
        {"dataframe/my_folds.csv": "filename,label\n", **classes("images", "figures")},
        unusable("dataframe: my_folds.csv cannot be told", "--data"),
    ),
    "an unknown file among fold files": Case(
        {
            **radimagenet("x_{split}.csv", "filename,label", ("images/{i}.png,no", "images/{i}.png,yes"), 0),
            "dataframe/all.csv": "",
        },
        unusable("all.csv"),
    ),
    "numbered and single folds": Case(
        {
            **radimagenet("x_{split}.csv", "filename,label", ("images/{i}.png,no", "images/{i}.png,yes"), 0),
            "dataframe/x_train_fold1.csv": "",
        },
        unusable("x_test.csv has no fold number"),
    ),
    "a file of a fold is missing": Case(
        {"dataframe/train.csv": "filename,label\n", "dataframe/val.csv": ""}, wrong("dataframe: test.csv is missing")
    ),
    "a label in two spellings across fold files": Case(
        {
            "dataframe/train.csv": "filename,label\n1.png,yes\n2.png,no\n",
            "dataframe/val.csv": "filename,label\n3.png,Yes\n",
            "dataframe/test.csv": "filename,label\n4.png,no\n",
            **images("1.png", "2.png", "3.png", "4.png"),
        },
        wrong("'yes'", "train.csv, row 2", "'Yes'", "val.csv, row 2"),
    ),
    "one image under two names in two parts": Case(
        {
            "dataframe/train.csv": "filename,label\n1.png,yes\n2.png,no\n",
            "dataframe/val.csv": "filename,label\n3.png,yes\n",
            "dataframe/test.csv": "filename,label\nlink.png,yes\n",
            **images("1.png", "2.png", "3.png"),
            "link.png": Link("1.png"),
        },
        wrong("link.png is in another split of the same fold too", "train.csv, row 2"),
    ),
}

CLASS_FOLDERS = {
    "class folders": Case(classes("a", "b"), Read("class folders", AB, 4)),
    "train and test": Case(
        classes("train/a", "train/b", "Testing/a", "Testing/b"),
        Read("train/test class folders", AB, 8, splits=("test", "train")),
    ),
    "system folders": Case(
        {**classes("a", "b"), **classes("@eaDir", "__MACOSX/a", ".ipynb_checkpoints", "a/@eaDir")},
        Read("class folders", AB, 4, left_out=(".ipynb_checkpoints, @eaDir, __MACOSX, a/@eaDir",)),
    ),
    "hidden files": Case(
        {**classes("a", "b"), "a/._1.png": "", ".DS_Store": ""},
        Read("class folders", AB, 4, left_out=("2 hidden files (such as .DS_Store)",)),
    ),
    "folds as folders": Case(classes("fold1", "fold2"), unusable("fold1, fold2", "cross-validation", "manifest.csv")),
    "images and masks": Case(classes("images", "masks"), unusable("images, masks", "not classes", "manifest.csv")),
    "images and labels of parts": Case(
        {**classes("train/images", "test/images"), "train/labels/1.txt": "", "test/labels/1.txt": ""},
        unusable("images, labels"),
    ),
    "images and annotations": Case(classes("Images", "Annotations"), unusable("Annotations, Images")),
    "images and figures": Case(classes("images", "figures"), unusable("figures, images")),
    "masks below a class": Case(
        classes("a/images", "a/masks", "b/images", "b/masks"),
        Read("class folders", AB, 4, left_out=("a/masks, b/masks",)),
    ),
    "a class of files that are not read": Case(
        {**classes("a", "b"), "c/1.heic": "", "c/2.heic": ""}, unusable("c holds no image that is read (2 .heic)")
    ),
    "a class of files without suffix": Case(
        {**classes("a", "b"), "c/IM0001": ""}, unusable("c holds no image that is read (1 without suffix)")
    ),
    "a class of hidden files": Case(
        {**classes("a", "b"), "c/._1.png": ""}, unusable("c holds no image that is read (1 hidden files)")
    ),
    "an empty class": Case({**classes("a", "b"), "c": FOLDER}, unusable("c is empty")),
    "an empty class in one part": Case(
        {**classes("train/a", "train/b", "test/a"), "test/b": FOLDER}, unusable("test/b is empty")
    ),
    "an empty part": Case(
        {**classes("train/a", "train/b", "test/a", "test/b"), "val": FOLDER}, unusable("val is empty")
    ),
    "JPEG and GIF by other names": Case(
        images("a/1.jfif", "a/2.JFIF", "b/1.gif", "b/2.GIF"), Read("class folders", AB, 4)
    ),
    "BUSI with its masks": Case(
        images(
            *(
                f"{name}/{name} ({i}){mask}.png"
                for name in ("benign", "malignant")
                for i in (1, 2)
                for mask in ("", "_mask")
            ),
            *("benign/benign (1)_mask_1.png", "benign/benign (2)-mask.png", "benign/benign (2)_Segmentation.png"),
            "benign/no_mask.png",
        ),
        Read("class folders", ("benign", "malignant"), 5, left_out=("7 masks beside their images",)),
    ),
    "other files": Case(
        {**classes("a", "b"), "a/notes.txt": "", "readme.md": ""},
        Read("class folders", AB, 4, left_out=("2 other files (1 .md, 1 .txt)",)),
    ),
    "one level too high": Case(
        classes("Dataset_BUSI/benign", "Dataset_BUSI/malignant"),
        unusable("all images lie in Dataset_BUSI", "benign, malignant", "give --data", "/Dataset_BUSI"),
    ),
    "two levels too high": Case(classes("x/y/train/a", "x/y/test/a"), unusable("below which are test, train", "/x/y")),
    "a folder of tasks": Case(
        {**classes("acl/images", "breast/images"), "acl/dataframe/train.csv": "", "breast/dataframe/train.csv": ""},
        unusable("acl/dataframe, breast/dataframe list the images below", "--data", "/acl"),
    ),
    "a manifest one level below": Case(
        {**classes("breast/images"), "breast/Manifest.csv": ""},
        unusable("breast/Manifest.csv lists the images below", "/breast/Manifest.csv"),
    ),
    "a table in every part": Case(
        {
            **images("train/1.png", "test/1.png"),
            "train/metadata.csv": "file_name,label\n",
            "test/metadata.csv": "file_name,label\n",
        },
        unusable("test/metadata.csv, train/metadata.csv list the images below", "--data"),
    ),
    "parts below the classes": Case(
        classes("a/train", "a/test", "b/train", "b/test"),
        unusable("b/train, b/test read like parts below the classes", "manifest.csv"),
    ),
    "folds below the classes": Case(
        classes("a/fold1", "a/fold2", "b/fold1"),
        unusable("a/fold1, a/fold2, b/fold1 read like parts below the classes"),
    ),
    "folders of masks by their names": Case(
        classes("a", "b", "a_masks"),
        Read("class folders", AB, 4, left_out=("folders of masks beside images: a_masks",)),
    ),
    "a spreadsheet beside a folder of images": Case(
        {**classes("images"), "labels.xlsx": b""}, unusable("images reads", "save the .xlsx file as CSV", "--data")
    ),
    "one class": Case(classes("a"), wrong("all 2 images are of one class, 'a'")),
    "one class, the other unread": Case(
        {**classes("a"), "b/1.heic": ""}, unusable("b holds no image that is read (1 .heic)")
    ),
    "a table beside images": Case(
        {**TWO, "labels.csv": "file,kind\n"}, unusable("2 images lie in no class folder", "give --data", "/labels.csv")
    ),
    "tables beside a folder of images": Case(
        {**images("images/1.png", "images/2.png"), "train.csv": "", "test.csv": ""},
        unusable("images reads", "test.csv, train.csv", "--data", "dataframe/"),
    ),
    "an option of tables without one": Case(classes("a", "b"), unusable("--data_root"), {"data_root": "."}),
    "patients by an expression in two spellings": Case(
        images("a/7_1.png", "a/007_2.png", "b/8.png"), wrong("'7'", "'007'", "007_2.png"), {"group_regex": r"/(\d+)"}
    ),
    "a table beside a folder of images": Case(
        {**images("images/1.png", "images/2.png"), "train.csv": ""}, unusable("images reads", "/train.csv")
    ),
    "a class in two spellings": Case(classes("Benign", "benign", "x"), wrong("'Benign'", "'benign'", "one")),
    "a class in two spellings in two parts": Case(
        classes("train/No Tumor", "train/x", "test/no_tumor", "test/x"), wrong("'No Tumor'", "'no_tumor'")
    ),
    "a class in two Unicode forms": Case(classes(NFC, NFD, "x"), wrong("two spellings")),
    "a class with a space behind": Case(classes("a ", "b"), Read("class folders", AB, 4)),
    "numbers as classes": Case(classes("9", "10"), Read("class folders", ("9", "10"), 4)),
    "a class folder of unknowns": Case(classes("a", "b", "nan"), wrong("'nan'", "missing value")),
    "normal stands last": Case(
        classes("abnormal", "Normal"), Read("class folders", ("Normal", "abnormal"), 4), {"positive_class": "abnormal"}
    ),
    "normal would be positive": Case(classes("abnormal", "normal"), unusable("normal", "--positive_class")),
    "no tumour would be positive": Case(classes("glioma", "no_tumor"), unusable("no_tumor", "--positive_class")),
    "positive of two": Case(classes("a", "b"), Read("class folders", ("b", "a"), 4), {"positive_class": "a"}),
    "positive of three": Case(classes("a", "b", "c"), unusable("3 classes"), {"positive_class": "a"}),
    "patients below classes": Case(
        classes("a/P1", "a/P2", "b/P3"), Read("class folders", AB, 6, hint="--group_regex '^[^/]+/([^/]+)/'")
    ),
    "patients in the beginnings of names": Case(
        images(*(f"{name}/person{number // 2}_{name}_{number}.png" for name in AB for number in range(4))),
        Read("class folders", AB, 8, hint="--group_regex '(person[0-9]+)'"),
    ),
    "patients below classes, said": Case(
        classes("a/P1", "a/P2", "b/P3"),
        Read("class folders", AB, 6, ("P1", "P2", "P3"), "--group_regex"),
        {"group_regex": "^[^/]+/([^/]+)/"},
    ),
    "a link to an image of another class": Case(
        {**classes("a", "b"), "b/z.png": Link("a/0.png")}, wrong("a/0.png and b/z.png are the same file", "a", "b")
    ),
    "a hard link to an image of another class": Case(
        {**classes("a", "b"), "b/z.png": Link("a/0.png", hard=True)}, wrong("a/0.png and b/z.png are the same file")
    ),
    "a link to an image of the same class": Case(
        {**classes("a", "b"), "a/z.png": Link("a/0.png")},
        Read("class folders", AB, 4, left_out=("1 second names of the same file by links (such as a/z.png)",)),
    ),
    "a link to an image of another part": Case(
        {**classes("train/a", "train/b", "test/a", "test/b"), "test/a/z.png": Link("train/a/0.png")},
        wrong("the same file", "once test and once train"),
    ),
    "a class that is a link to another": Case(
        {**classes("a"), "b": Link("a")}, unusable("b shows the same folder as a")
    ),
    "train without test": Case(classes("train/a", "train/b"), unusable("no images in a folder test")),
    "two training parts": Case(
        classes("train/a", "train/b", "Training/a", "test/a", "test/b"), unusable("Training and train are both")
    ),
}

TABLES = {
    "a manifest": Case(
        {**table("path,label", "1.png,a", "2.png,b"), **TWO, "masks/1.png": IMAGE},
        Read(MANIFEST, AB, 2, left_out=("1 images that no table lists (such as masks/1.png)",), tables=1),
    ),
    "manifest.CSV": Case(
        {**table("path,label", "1.png,a", "2.png,b", name="manifest.CSV"), **TWO},
        Read("/manifest.CSV", AB, 2, tables=1),
    ),
    "Manifest.csv": Case(
        {**table("path,label", "1.png,a", "2.png,b", name="Manifest.csv"), **TWO},
        Read("/Manifest.csv", AB, 2, tables=1),
    ),
    "two manifests": Case(
        {**table("path,label"), **table("path,label", name="Manifest.csv")}, unusable("Manifest.csv and manifest.csv")
    ),
    "Hugging Face's": Case(
        {**table("file_name,label", "1.png,a", "2.png,b", name="metadata.csv"), **TWO},
        Read("/metadata.csv", AB, 2, tables=1),
    ),
    "metadata of something else": Case(
        {**table("PatientAge,Sex", "60,F", name="metadata.csv"), **classes("a", "b")},
        Read("class folders", AB, 4, left_out=("1 other files (1 .csv)",)),
    ),
    "a table of tabs": Case(
        {**table("path\tlabel", "1.png\ta", "2.png\tb", name="x.tsv"), **TWO},
        Read("/x.tsv (separated by tabs)", AB, 2),
        data="x.tsv",
    ),
    "a text of spaces": Case(
        {**table("path label", "1.png a", "2.png b", name="x.txt"), **TWO},
        Read("/x.txt (separated by spaces)", AB, 2),
        data="x.txt",
    ),
    "a text without a header": Case(
        {**table("1.png 0", "2.png 1", name="x.txt"), **TWO},
        wrong("x.txt: its first line names an image", "path,label"),
        data="x.txt",
    ),
    "a table of Excel's own": Case({"x.xlsx": b""}, unusable("only a table", ".csv"), data="x.xlsx"),
    "semicolons": Case(
        {**table("path;label;size", "1.png;a;1,5", "2.png;b;2,5"), **TWO},
        Read("/manifest.csv (separated by semicolons)", AB, 2, unread=("size",), tables=1),
    ),
    "semicolons, told to Excel": Case(
        {**table("sep=;", "path;label", "1.png;a", "2.png;b"), **TWO},
        Read("/manifest.csv (separated by semicolons)", AB, 2, tables=1),
    ),
    "UTF-16": Case(
        {**table("path\tlabel", "1.png\ta", "2.png\tb", encoding="utf-16"), **TWO},
        Read("/manifest.csv (separated by tabs; UTF-16)", AB, 2, tables=1),
    ),
    "UTF-16 without its mark": Case(
        {**table("path,label", "1.png,a", encoding="utf-16-le"), **TWO}, wrong("null bytes", "UTF-8")
    ),
    "a byte order mark": Case(
        {**table("path,label", "1.png,a", "2.png,b", encoding="utf-8-sig"), **TWO}, Read(MANIFEST, AB, 2, tables=1)
    ),
    "cp1252": Case(
        {**table("path,label", "größe.png,bösartig", "2.png,gut", encoding="cp1252"), **images("größe.png", "2.png")},
        Read("/manifest.csv (cp1252, as it is not UTF-8)", ("bösartig", "gut"), 2, tables=1),
    ),
    "no encoding that is known": Case(
        {"manifest.csv": b"path,label\n1.png,\x81\x8d\n", **TWO}, wrong("neither UTF-8 nor cp1252", "save it as UTF-8")
    ),
    "backslashes": Case(
        {**table("path,label", r"img\1.png,a", r".\img\2.png,b"), **images("img/1.png", "img/2.png")},
        Read(MANIFEST, AB, 2, paths=("img/1.png", "./img/2.png"), tables=1),
    ),
    "the other Unicode form": Case(
        {**table("path,label", f"{NFC}.png,a", f"{NFD}2.png,b"), **images(f"{NFD}.png", f"{NFC}2.png")},
        Read(MANIFEST, AB, 2, paths=(f"{NFD}.png", f"{NFC}2.png"), tables=1),
    ),
    "names of columns as written elsewhere": Case(
        {
            **table(
                "Image Path,Class,PatientID,Split,Age",
                *("1.png,a,P1,Train,60", "2.png,b,P2,Train,60", "3.png,a,P3,valid,1", "4.png,b,P4,dev,2"),
                *("5.png,a,P5,Test,60", "6.png,b,P6,TESTING,60"),
            ),
            **SIX,
        },
        Read(
            *(MANIFEST, AB, 6, tuple(f"P{i}" for i in range(1, 7)), "column PatientID"),
            unread=("Age",),
            splits=("test", "train", "val"),
            tables=1,
        ),
    ),
    "path and label by name": Case(
        {**table("scan,finding", "1.png,a", "2.png,b"), **TWO},
        Read(MANIFEST, AB, 2, tables=1),
        {"path_column": "scan", "label_column": "finding"},
    ),
    "a column of paths that is not told": Case(
        {**table("scan,finding", "1.png,a"), **TWO}, wrong("no column path", "scan, finding", "--path_column")
    ),
    "a column of labels that is not told": Case(
        {**table("path,finding", "1.png,a"), **TWO}, wrong("no column label", "path, finding", "--label_column")
    ),
    "a column that is not there": Case(
        {**table("path,label", "1.png,a"), **TWO},
        unusable("--label_column kind", "path, label"),
        {"label_column": "kind"},
    ),
    "a column without a table": Case(classes("a", "b"), unusable("--label_column kind"), {"label_column": "kind"}),
    "two columns of labels": Case(
        {**table("path,label,class", "1.png,0,a"), **TWO},
        wrong("label and class may each be the label", "--label_column"),
    ),
    "two columns of labels, one said": Case(
        {**table("path,label,class", "1.png,0,a", "2.png,1,b"), **TWO},
        Read(MANIFEST, AB, 2, unread=("label",), tables=1),
        {"label_column": "class"},
    ),
    "two columns of patients": Case(
        {**table("path,label,pid,subject", "1.png,a,1,1"), **TWO}, wrong("pid and subject may each be the patient_id")
    ),
    "two columns of paths": Case(
        {**table("image,path,label", "1.png,2.png,a", "2.png,1.png,b"), **TWO},
        wrong("columns image and path both name images", "--path_column"),
    ),
    "columns of one class in two spellings": Case(
        {**table("path,label_Edema,label_edema", "1.png,0,1", "2.png,1,0"), **TWO},
        wrong("'label_Edema'", "'label_edema'"),
    ),
    "two columns of paths, an image missing": Case(
        {**table("path,filename,label", "/x/1.png,1.png,a", "/x/9.png,9.png,b", "/x/2.png,2.png,b"), **TWO},
        wrong("row 3: there is no image", "/9.png"),
    ),
    "labels 1 and 1.0": Case(
        {**table("path,label", "1.png,1", "2.png,0", "3.png,1.0"), **SIX},
        wrong("label '1.0'", "row 4", "'1'", "row 2", "two spellings"),
    ),
    "labels Benign and benign": Case(
        {**table("path,label", "1.png,Benign ", "2.png,x", "3.png,benign"), **SIX},
        wrong("'benign'", "row 4", "'Benign'"),
    ),
    "labels with spaces behind": Case(
        {**table("path,label", "1.png,a ", "2.png,b", "3.png,a"), **images("1.png", "2.png", "3.png")},
        Read(MANIFEST, AB, 3, tables=1),
    ),
    "patients 7 and 007": Case(
        {**table("path,label,patient", "1.png,a,7", "2.png,b,007"), **TWO},
        wrong("patient '007'", "row 3", "'7'", "row 2"),
    ),
    "patients 7 and 7.0": Case(
        {**table("path,label,patient", "1.png,a,7", "2.png,b,7.0"), **TWO}, wrong("patient '7.0'", "'7'")
    ),
    "a patient that is none": Case(
        {**table("path,label,patient", "1.png,a,7", "2.png,b,nan"), **TWO}, wrong("row 3", "patient 'nan'", "missing")
    ),
    "an image by another spelling of its path": Case(
        {**table("path,label", "1.png,a", "sub/../1.png,b"), **TWO, "sub": FOLDER},
        wrong("row 3: sub/../1.png is listed before as 1.png, in row 2"),
    ),
    "an image by a link": Case(
        {**table("path,label", "1.png,a", "2.png,b", "z.png,b"), **TWO, "z.png": Link("1.png")},
        wrong("row 4: z.png is listed before as 1.png, in row 2"),
    ),
    "a missing image": Case(
        {**table("path,label", "1.png,a", r"img\9.png,b"), **TWO}, wrong("row 3", "9.png", "--data_root")
    ),
    "patients by an expression, before a column": Case(
        {**table("path,label,pid", "1.png,a,7", "2.png,b,8"), **TWO},
        Read(MANIFEST, AB, 2, ("1", "2"), "--group_regex", unread=("pid",), tables=1),
        {"group_regex": r"(\d)\.png"},
    ),
}
for _value in ("nan", "NaN", "None", "-1", "?", "N/A"):
    TABLES[f"label {_value}"] = Case(
        {**table("path,label", "1.png,0", "2.png,1", f"3.png,{_value}"), **SIX},
        wrong("row 4", repr(_value), "missing value"),
    )

CASES = FOLD_FILES | CLASS_FOLDERS | TABLES


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_and_what_is_refused(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    folder = write(tmp_path / name.split(",")[0].replace(" ", "_"), case.layout)
    data = folder / case.data
    if isinstance(case.expected, Refused):
        with pytest.raises(case.expected.error) as caught:
            read_records(str(data), labelled=True, **case.options)
        message = str(caught.value)
        assert type(caught.value) is case.expected.error
        assert "\n" not in message
        for part in case.expected.parts:
            assert part in message, message
        return
    expected, records = case.expected, read_records(str(data), labelled=True, **case.options)
    assert records.reader.endswith(expected.reader)
    assert (records.classes, len(records)) == (expected.classes, expected.images)
    patients = None if records.patients is None else tuple(sorted(set(records.patients)))
    assert (patients, records.patient_source) == (expected.patients, expected.source)
    assert records.unread_columns == expected.unread
    assert len(records.folds) == expected.folds
    assert (None if records.splits is None else tuple(sorted(set(records.splits)))) == expected.splits
    if expected.paths is not None:
        assert tuple(records.paths) == expected.paths
    for part in expected.left_out:
        assert any(part in line for line in records.left_out), records.left_out
    assert len(records.left_out) == len(expected.left_out)
    assert [expected.hint in hint for hint in records.hints] == [True] * bool(expected.hint)
    if data.is_dir():
        assert unnamed(folder, records, expected.tables) == 0
    for part in (*records.left_out, *records.unread_columns, *records.hints):
        assert part in records.summary()


def test_there_are_many_cases() -> None:
    assert len(CASES) == len(FOLD_FILES) + len(CLASS_FOLDERS) + len(TABLES) > 100


def test_unlabelled_images_come_without_masks_and_second_names(tmp_path: Path) -> None:
    layout = {
        **images("x/1.png", "x/1_mask.png", "images/a.png", "masks/a.png", ".git/1.png", "@eaDir/1.png", "top.png"),
        "x/z.png": Link("top.png"),
        "x/1.heic": "",
    }
    records = read_records(str(write(tmp_path, layout)), labelled=False)
    assert records.paths.tolist() == ["images/a.png", "top.png", "x/1.png"]
    assert records.reader == "images below the folder"
    assert records.left_out == (
        "1 masks beside their images (such as x/1_mask.png)",
        "folders of masks beside images: masks",
        "system folders: .git, @eaDir",
        "1 other files (1 .heic)",
        "1 second names of the same file by links (such as x/z.png)",
    )
    assert unnamed(tmp_path, records, 0) == 0


def test_a_probe_needs_no_positive_class(tmp_path: Path) -> None:
    write(tmp_path, classes("abnormal", "normal"))
    assert read_records(str(tmp_path), labelled=True, positive_needed=False).classes == ("abnormal", "normal")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("labelled", [True, False])
def test_names_that_are_no_utf_8_are_refused_or_left_out(tmp_path: Path, labelled: bool) -> None:
    write(tmp_path, classes("a", "b"))
    odd = os.fsdecode(b"b\xf6se.png")
    (tmp_path / "a" / odd).touch()
    (tmp_path / "b" / os.fsdecode(b"\xe9")).mkdir()
    (tmp_path / "b" / os.fsdecode(b"\xe9") / "1.png").touch()
    (tmp_path / "b" / os.fsdecode(b"\xe9") / "notes.csv").touch()
    with pytest.raises(RunError, match=r"2 files have names that are not UTF-8, such as a/b\\udcf6se.png; rename"):
        read_records(str(tmp_path), labelled=labelled)
    records = read_records(str(tmp_path), labelled=labelled, on_bad_file="skip")
    assert records.misnamed == (r"a/b\udcf6se.png", r"b/\udce9/1.png")
    assert len(records) == 4
    assert "2 files whose names are not UTF-8" in records.summary()
    for path in (tmp_path / "a", tmp_path / "b"):
        for file in path.glob("[01].png"):
            Image.new("L", (4, 4)).save(file)
    kept, headers = open_images(records, on_bad_file="skip")
    assert len(kept) == 4
    list_skipped(headers.bad, tmp_path / "skipped_files.csv")
    assert (tmp_path / "skipped_files.csv").read_text().splitlines()[1:] == [
        r"a/b\udcf6se.png,its name is not UTF-8",
        r"b/\udce9/1.png,its name is not UTF-8",
    ]
    (tmp_path / odd).mkdir()
    with pytest.raises(UsageError, match=r"b\\udcf6se.png: its name is not UTF-8"):
        read_records(str(tmp_path / odd), labelled=labelled)
