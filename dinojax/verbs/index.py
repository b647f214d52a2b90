"""`dinojax index FOLDER`: a manifest of the images that lie there."""

import re
from pathlib import Path

from dinojax.config.index import IndexConfig
from dinojax.data import privacy
from dinojax.data.indexing import index_folder, manifest_of, pseudonyms, relative
from dinojax.errors import UsageError
from dinojax.runs.files import write_text
from dinojax.wording import counted


def main(config: IndexConfig) -> Path:
    """Reads every image's header and writes what it says; the same command goes on where it was interrupted."""
    folder, out = Path(config.folder).expanduser(), Path(config.out)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if out.suffix.lower() != ".csv":
        raise UsageError(f"--out {out}: a table is written; let its name end in .csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    salt = privacy.read_salt(config.salt_file)
    part = out.with_name(f"{out.name}.part")
    if config.pseudonyms:  # it holds paths
        part = privacy.salt_path(config.salt_file).with_name(
            f"{privacy.hashed(salt, 'index', str(out.resolve()))}.part"
        )
    index = index_folder(
        folder,
        part,
        salt=salt,
        max_megapixels=config.max_megapixels,
        threads=config.threads,
        group_regex=config.group_regex,
    )
    table, unreadable = manifest_of(index, folder, out), index.unreadable
    if config.pseudonyms:
        names = pseudonyms([*index.images["path"], *unreadable["path"]], folder, salt)
        table["path"] = index.images["path"].map(names.get)
        unreadable["path"] = unreadable["path"].map(names.get)
        key = privacy.write_keys(config.salt_file, [(name, (folder / path).resolve()) for path, name in names.items()])
        # In another order than that of the paths, which tells too.
        table = table.rename(columns={"path": "pseudonym"}).sort_values("pseudonym", kind="stable")
        print(f"paths are listed by pseudonyms; {key} says which file each stands for: keep it, and keep it secret")
    else:
        unreadable["path"] = relative(unreadable["path"], folder, out)
    bad = out.with_name(f"{out.stem}_unreadable.csv")
    bad.unlink(missing_ok=True)
    if len(unreadable):
        write_text(bad, unreadable.to_csv(index=False))
    write_text(out, table.to_csv(index=False))
    part.unlink()
    for line in index.left_out:  # of which what follows a colon or stands in parentheses are names
        print("not listed:", re.split(r" \(|: ", line)[0] if config.pseudonyms else line)
    if index.telling and not config.pseudonyms:
        files = counted(index.telling, "path")
        print(f"warning: {files} with a name or id of its header; --pseudonyms true lists hashed names")
    listed = f"{counted(len(table), 'image')} of {counted(len(set(index.images['path'])), 'file')}"
    print(
        f"done: {out} lists {listed}"
        + (f"; {bad} lists {len(unreadable)} that cannot be read" if len(unreadable) else "")
    )
    return out
