"""Just enough C++ reading for the style test: code, comments, functions, classes."""

import re

_TOKEN = re.compile(
    r"""//[^\n]*(?:\\\n[^\n]*)*            # line comment, perhaps continued
      | /\*.*?\*/                          # block comment
      | R"(?P<delim>[^()\\\s]{0,16})\(.*?\)(?P=delim)"   # raw string
      | "(?:\\.|[^"\\\n])*"                # string
      | (?<![0-9a-zA-Z_])(?:u8|[uUL])?'(?:\\.|[^'\\\n])+'   # character, not a digit separator
    """,
    re.VERBOSE | re.DOTALL,
)


def _blank(text):
    return re.sub(r"[^\n]", " ", text)


def split_code(text):
    """Returns (code, comments): both as long as `text`, with the other kind turned into spaces.

    Strings and characters keep their quotes in `code` and lose what is between them. Include paths
    are strings, so read them from the text itself.
    """
    code, comments, at = [], [], 0
    for match in _TOKEN.finditer(text):
        plain = text[at : match.start()]
        token = match.group()
        code.append(plain)
        comments.append(_blank(plain))
        if token.startswith(("//", "/*")):
            code.append(_blank(token))
            comments.append(token)
        else:
            code.append(token[0] + _blank(token[1:-1]) + token[-1])
            comments.append(_blank(token))
        at = match.end()
    code.append(text[at:])
    comments.append(_blank(text[at:]))
    return "".join(code), "".join(comments)


def line_of(text, offset):
    """1-based."""
    return text.count("\n", 0, offset) + 1


def without_preprocessor(code):
    """Directives blanked, with their continuation lines: they may hold unbalanced braces."""
    return re.sub(
        r"^[ \t]*#[^\n]*(?:\\\n[^\n]*)*", lambda m: _blank(m.group()), code, flags=re.MULTILINE
    )


def matching(code, start, pair):
    """Offset of the bracket that closes the one at `start`, or len(code)."""
    depth = 0
    for at in range(start, len(code)):
        if code[at] == pair[0]:
            depth += 1
        elif code[at] == pair[1]:
            depth -= 1
            if depth == 0:
                return at
    return len(code)


def call_arguments(code, open_paren):
    """The arguments of the call whose '(' is at `open_paren`, split at the outermost commas."""
    end = matching(code, open_paren, "()")
    arguments, depth, last = [], 0, open_paren + 1
    for at in range(open_paren + 1, end):
        if code[at] in "([{":
            depth += 1
        elif code[at] in ")]}":
            depth -= 1
        elif code[at] == "," and depth == 0:
            arguments.append(code[last:at].strip())
            last = at + 1
    arguments.append(code[last:end].strip())
    return arguments


_CONTAINER = re.compile(
    r"^\s*(?:template\s*<.*?>\s*)?(?:inline\s+)?(?:namespace|extern\s*\"|class|struct|union)\b",
    re.DOTALL,
)


_CLASS = re.compile(
    r"\s*(?:template\s*<.*?>\s*)?class\s+(?:\[\[\w+\]\]\s*)?(?:[A-Z_]+\([^)]*\)\s*)?(\w+)",
    re.DOTALL,
)


def functions(code):
    """Yields (offset of '{', offset of its '}') of every function body, lambdas not counted.

    Works by the shape of the text at namespace and class level: a brace whose heading has a
    parenthesis opens a function unless the heading says namespace, class, struct, union or enum.
    """
    code = without_preprocessor(code)
    heading_start, at = 0, 0
    while at < len(code):
        char = code[at]
        if char in ";}":
            heading_start = at + 1
        elif char == "{":
            heading = code[heading_start:at]
            end = matching(code, at, "{}")
            if _CONTAINER.match(heading) and not re.search(r"=\s*$", heading):
                heading_start = at + 1
            elif code[end + 1 :].lstrip()[:1] in (",", "{"):
                at = end  # one of a constructor's initializers: the heading goes on
            else:
                if "(" in heading and not re.match(r"\s*enum\b", heading):
                    yield at, end
                at = end
                heading_start = end + 1
        at += 1


def classes(code):
    """Yields (name, offset of the declaration) of every class defined at namespace level."""
    code = without_preprocessor(code)
    heading_start, at = 0, 0
    while at < len(code):
        char = code[at]
        if char in ";}":
            heading_start = at + 1
        elif char == "{":
            heading = code[heading_start:at]
            if re.match(r"\s*(?:inline\s+)?namespace\b", heading):
                heading_start = at + 1
            else:
                found = _CLASS.match(heading)
                if found:
                    yield found.group(1), heading_start + len(heading) - len(heading.lstrip())
                at = matching(code, at, "{}")
                heading_start = at + 1
        at += 1


def words(identifier):
    """Words of an identifier, lower case: kMaxUrlBytes_ -> k max url bytes."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", identifier)
    return [part.lower() for part in parts]
