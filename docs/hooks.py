"""Gathers the site's pages: Markdown files where they stand, and the API reference.

The site keeps the paths of the repository, so a link works in both.
"""

import ast
import re
from pathlib import Path

import grimp
from mkdocs.structure.files import File
from mkdocs.structure.files import Files

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "keras_psp"
LINK = re.compile(r"\]\(([^)#:]+)[^)]*\)")
# The members that users call and that a class has from an internal mixin.
INHERITED = {
    "keras_psp.models.TaskModel": (
        "num_tasks, task_names, class_names, present_tasks, removed_tasks, "
        "task_index, add_tasks, remove_task, remove_tasks"
    )
}
PROJECT = ["docs/architecture.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]


def guides():
    """The pages of packages and examples, as paths from the root."""
    found = [
        *sorted(PACKAGE.glob("*/*.md")),
        *sorted(ROOT.glob("examples/*/README.md")),
    ]
    return [readme.relative_to(ROOT).as_posix() for readme in found]


def api_pages():
    """The API page of every public package, as path and Markdown."""
    packages = {"keras_psp": PACKAGE / "__init__.py"}
    for init in sorted(PACKAGE.glob("[!_]*/__init__.py")):
        packages[f"keras_psp.{init.parent.name}"] = init
    pages = {}
    for package, init in packages.items():
        tree = ast.parse(init.read_text())
        names = _exported_names(tree)
        if package == "keras_psp":  # The packages have pages of their own.
            names = [n for n in names if not (PACKAGE / n / "__init__.py").exists()]
        blocks = [_block(f"{package}.{name}") for name in names]
        title = f"# `{package}`\n\n{ast.get_docstring(tree)}"
        pages[f"api/{package}.md"] = "\n\n".join([title, *blocks])
    return pages


def _block(name):
    """The Markdown that mkdocstrings replaces by the documentation of a name."""
    if name not in INHERITED:
        return f"::: {name}"
    return f"::: {name}\n    options:\n      inherited_members: [{INHERITED[name]}]"


def _exported_names(tree):
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def on_config(config):
    config.nav = [
        {"Start": "README.md"},
        {"Guides": guides()},
        {"API": [{Path(page).stem: page} for page in api_pages()]},
        {"Project": PROJECT},
    ]
    return config


def on_files(files, config):
    site = [file for file in files if file.src_dir != config.docs_dir]  # The theme's.
    pages = {"README.md", *guides(), *PROJECT}
    linked = set()
    for page in pages:
        for target in LINK.findall((ROOT / page).read_text()):
            path = (ROOT / page).parent.joinpath(target).resolve()
            if path.is_file():
                linked.add(path.relative_to(ROOT).as_posix())
    for path in sorted(pages | linked):
        site.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    for path, text in api_pages().items():
        site.append(File.generated(config, path, content=text))
    return Files(site)


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri == "docs/architecture.md":
        return markdown.replace("<!-- rooms -->", draw_rooms())
    return markdown


def rooms():
    """Each room, and the rooms that it imports itself (not only through others)."""
    graph = grimp.build_graph("keras_psp", exclude_type_checking_imports=True)
    names = sorted(graph.find_children("keras_psp"))
    for name in names:
        graph.squash_module(name)
    imports = {
        name: graph.find_modules_directly_imported_by(name) & set(names) - {name}
        for name in names
    }
    below = {name: _reachable(name, imports) for name in names}
    return {
        name: {
            room
            for room in imports[name]
            if not any(room in below[other] for other in imports[name])
        }
        for name in names
    }


def _reachable(name, imports):
    found = set(imports[name])
    for room in imports[name]:
        found |= _reachable(room, imports)
    return found


def draw_rooms():
    """The rooms as an SVG: each stands above all that it imports."""
    arrows = rooms()

    def level(name):
        return 1 + max(map(level, arrows[name]), default=-1)

    floors = {}
    for name in arrows:
        floors.setdefault(level(name), []).append(name)
    width, height, step = 150, 30, 62
    total = 170 * max(map(len, floors.values()))
    place = {}
    for floor, names in floors.items():
        for i, name in enumerate(names):
            x = total * (i + 0.5) / len(names)
            place[name] = x, (len(floors) - 1 - floor) * step + height
    lines, boxes = [], []
    for name, (x, y) in place.items():
        for room in sorted(arrows[name]):
            to_x, to_y = place[room]
            lines.append(
                f'<path d="M{x:.0f} {y + height / 2:.0f} L{to_x:.0f} '
                f'{to_y - height / 2:.0f}" marker-end="url(#tip)"/>'
            )
        boxes.append(
            f'<rect x="{x - width / 2:.0f}" y="{y - height / 2:.0f}" rx="4" '
            f'width="{width}" height="{height}"/><text x="{x:.0f}" y="{y + 5:.0f}">'
            f"{name.removeprefix('keras_psp.')}</text>"
        )
    return "\n".join(
        [
            f'<svg viewBox="0 0 {total} {len(floors) * step}" role="img" '
            'aria-label="Which package imports which" style="max-width: 640px">',
            "<style>.rooms path{stroke:#888;fill:none}"
            ".rooms rect{fill:#e8eaf6;stroke:#3f51b5}"
            ".rooms text{font:14px monospace;text-anchor:middle}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" '
            'markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M0 0 L8 4 L0 8 z" fill="#888"/></marker></defs>',
            '<g class="rooms">',
            *lines,
            *boxes,
            "</g></svg>",
        ]
    )
