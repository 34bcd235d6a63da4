"""Pattern-based redaction of free text: matches are replaced by ``___``, as in MIMIC-CXR.

Patterns find identifiers with a recognizable format: dates, telephone numbers, a name after a title or after "signed
by", but not a name without either. A word that is more often clinical ("MR Angiography", "may") is kept. This reduces
the risk of disclosure but is not de-identification in the legal sense.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_CONFIG_BYTES, read_bounded
from medunifier.shared.files.text import decode_text, text_lines

MARK = "___"

# "may" and "march" in lower case are verbs, unless a year follows.
_MONTH = (
    r"(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)(?![A-Za-z])\.?"
)
_NO_VERB = (
    r"(?![a-z])(?!(?:MAY|MARCH|May|March)\.?\s+(?i:be|not|also|have|well|represent|reflect|indicate|suggest|relate|simply|"
    r"still|just|then|now|in|along|require|need|correspond|contain|cause|mimic|obscure|account|benefit)\b)"
)
_DAY = r"(?:[12]\d|3[01]|0?[1-9])(?:st|nd|rd|th|ST|ND|RD|TH)?"
_YEAR = r"(?:(?:19|20)\d\d|['’]\d\d)"
_NO_UNIT = r"(?!\s*-?\s*(?:mm|cm|ml|mL|cc|%|x\b|views?\b|images?\b|films?\b|ribs?\b|of\b|days?\b|weeks?\b|lobes?\b))"
_NO_LEVEL = r"(?<!ribs )(?<!rib )(?<!Ribs )(?<!RIBS )(?<!levels )(?<!level )(?<![Ii]mage )(?<!images )(?<![Ss]eries )(?<!ratio )"  # noqa: E501

# Even in capitals, these words are no names: what follows a modality ("MR Angiography", "DR Chest"), and what begins
# a sentence behind a name without its full stop ("PER DR SMITH THERE IS NO …").
_NO_NAME = (
    r"(?!(?i:drs?|mrs?|ms|prof|a|an|and|are|as|at|be|been|before|but|by|can|could|did|do|does|during|each|for|from|had|has|have|he|her|his|"
    r"if|in|into|is|it|its|may|might|no|non|none|not|now|of|on|or|our|per|please|prior|recommend\w*|she|should|since|so|"
    r"than|that|the|their|then|there|these|they|this|to|under|until|via|was|we|were|when|where|which|while|who|will|with|"
    r"within|without|would|yes|you|"
    r"angio\w*|arthro\w*|brain|breast|cardiac|cardio\w*|chest|cholangio\w*|clinic\w*|compar\w*|compatib\w*|conditional\w*|"
    r"contin|correlat\w*|elasto\w*|entero\w*|evaluat\w*|exam\w*|findings?|follow\w*|guid\w*|head|imag\w*|impression|"
    r"indicat\w*|lesions?|lungs?|mammo\w*|neck|neuro\w*|normal|pelv\w*|perfusion|plaques?|portable|protocol\w*|"
    r"radiograph\w*|report\w*|reviewed|results?|safe\w*|scan\w*|sequences?|signal\w*|spectro\w*|spin\w*|stud\w*|system\w*|"
    r"thora\w*|uro\w*|veno\w*|views?|x-?rays?|abdom\w*|acute|bilateral|heart|left|right|mild|moderate|severe|small|large|"
    r"stable|unchanged|new|clear|pleur\w*|pneumo\w*|effusions?|edema|oedema|consolidat\w*|atelecta\w*|opaci\w*|nodul\w*|"
    r"mass\w*|fractur\w*|device\w*|tubes?|lines?|catheter\w*|upper|lower|low|middle|mediasti\w*|bones?|bony|osseous|ribs?|"
    r"infiltrat\w*|discussed|signed|dictated|electronically|verified|approved|notified|aware|called|informed|today|"
    r"increas\w*|decreas\w*|persist\w*|interval|minimal|possible|probable|suspect\w*|concern\w*|suggest\w*|repeat|ct|pa|ap|"
    r"mri|mra|us|pet|icu|ed|er|picc|et|ng|iv|lll|rll|rul|lul|rml|copd|chf|pe|ph|pneumonia|cardiomegaly)\b)"
)
_WORD = rf"{_NO_NAME}(?:[A-Z]\.(?=\s|,)|[A-Z][\w'’-]+)"
_NAME = rf"(?:(?:de|van|von|der|la|bin|al)\s+)*{_NO_NAME}(?:[A-Z]\.\s?)*[A-Z][\w'’-]*(?:(?:,?\s+|(?<=\.))(?:(?:de|van|von|der|la|bin|al)\s+)*{_WORD}){{0,3}}"  # noqa: E501
_FULL_NAME = (
    rf"(?:{_NO_NAME}[A-Z]\.\s?)+{_NO_NAME}[A-Z][a-z'’-]{{2,}}"
    rf"|{_NO_NAME}[A-Z][a-z'’-]+(?:\s+[A-Z]\.)?\s+{_NO_NAME}[A-Z][\w'’-]{{2,}}|{_NO_NAME}[A-Z][a-z'’-]+,\s+{_WORD}"
)
_SIGNED = (
    r"(?i:(?:signed|dictated|transcribed|typed|read|reported|reviewed|interpreted|approved|verified|authori[sz]ed|"
    r"performed|attested|entered|reporter|radiologist|physician|attending|resident|technologist|clinician|consultant)"
    r"(?:\s+(?:electronically|and|signed|verified|approved|reported|radiologist|physician|name)){0,4})"
)
_TITLE_WORD = (
    r"(?!(?i:the|an?|in|of|at|to|for|from|outside|prior|previous|referring|another|other|our|this|your|any|and|or|"
)
_TITLE_WORD += (
    r"is|was|with|no|if|compared|comparison|transferred|after|since|during|seen|old|same|home|local|field)\b)"
)
_TITLE_WORD += r"(?:St\.|[A-Z][\w'’-]+|[A-Z]\.)"
_PLACE = rf"{_TITLE_WORD}(?:\s+(?:of\s+|and\s+|&\s+|the\s+)?{_TITLE_WORD}){{0,4}}"

# {name: patterns} in order of application, so that a date is not mistaken for a telephone number.
BUILT_IN: dict[str, tuple[str, ...]] = {
    "contacts": (
        r"[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,5}[A-Za-z]{2,}",
        r"(?i:\b(?:https?|ftp|file)://|\bwww\.)[^\s<>\"]*[\w/]",
        r"(?<![\w.@-])(?:[\w-]{1,63}\.){1,4}(?i:com|org|net|edu|gov|info|nhs\.uk|ac\.uk|co\.uk)\b(?:/[^\s<>\"]*[\w/])?",
    ),
    "dates": (
        r"\b(?:19|20)\d\d(?:-\d{1,2}-|/\d{1,2}/|\.\d{1,2}\.)\d{1,2}(?!\d)",
        rf"{_NO_LEVEL}(?<![\w.,/-])\d{{1,2}}(?:/\d{{1,2}}/|\.\d{{1,2}}\.|-\d{{1,2}}-)(?:\d{{4}}|\d{{2}})(?![\w/-]|\.\d)",
        r"(?<![\w.-])(?:0?[1-9]|1[0-2])[/-](?:19|20)\d\d\b(?!\s*(?:mL|ml|cc|mm))",
        r"(?<![\w.-])(?:0[1-9]|[12]\d|3[01])\s(?:0[1-9]|1[0-2]|[12]\d|3[01])\s(?:19|20)\d\d\b",
        rf"(?<![\w.-]){_DAY}\.?(?:\s+of)?[\s/-]*{_MONTH}[,\s/-]*(?:{_YEAR}|(?<=[-/])\d\d)\b",
        rf"(?<![\w./-])(?<!ribs )(?<!rib ){_DAY}(?:\s+of\s+|-|\s+){_NO_VERB}{_MONTH}(?!\w)",
        rf"\b{_MONTH}[\s/-]*{_DAY}(?:,?[\s/-]+{_YEAR})\b",
        rf"\b{_NO_VERB}{_MONTH}\s+{_DAY}\b{_NO_UNIT}(?![.,-]\d)",
        rf"\b{_MONTH},?\s*(?:of\s+)?{_YEAR}\b",
        # Day and month alone look like a fraction or a spinal level; a preposition identifies a date.
        rf"(?<![Ss]core )(?<![Gg]rade )(?<!stage )\b(?i:on|from|of|dated?|since|to|with)\s*:?\s+((?:0?[1-9]|1[0-2])/(?:[12]\d|3[01]|0?[1-9])"  # noqa: E501
        rf"|(?:[12]\d|3[01])/(?:0?[1-9]|1[0-2]))\b(?!/){_NO_UNIT}(?!\s+(?:(?:the\s+)?(?:left\s+|right\s+)?(?:lung|hemi\w*|chest|lobe|vertebra|disc|fields?|heart))\b)",
    ),
    "times": (
        rf"{_NO_LEVEL}(?<![\w.:])(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?![\w:])(?:\s*(?i:[ap]\.?m\b\.?))?",
        r"(?<![\w.])(?:0?[1-9]|1[0-2])\s*(?i:[ap]\.m\.|[ap]m\b)(?!\s+(?i:leads?|wires?|generator|device))",
        r"\b(?:[01]\d|2[0-3])[0-5]\d\s*(?i:hours|hrs)\b",
        r"\b(?i:at)\s+((?:[01]\d|2[0-3])[0-5]\d)\b(?!\s*(?:m[lL]|cc|HU|mm|cm|g)\b|\.\d)",
    ),
    "phones": (
        r"(?i:\b(?:tel|telephone|phone|fax|pager|beeper|mobile|cell|bleep)\b\.?(?:\s*(?:no\.?|number|#))?\s*(?:is\s+)?:?)"
        r"\s*([+(]?\d[\d ()./-]*\d)",
        r"(?i:\b(?:ext(?:ension)?|x)\b\.?\s*(?:no\.?|number|#|:)?\s*)(\d{3,6})\b(?!\.\d)",
        r"(?<![\w.])(?:\+?\d{1,3}[ .-]?)?(?:\(\d{3}\)\s*\d{3}[ .-]?|\d{3}[ .-]\d{3}[ .-])\d{4}\b",
        r"(?<![\w.-])\d{3}-\d{4}\b(?!\s*-?\s*(?:cc|ml|mL|mm|cm|mg|HU|to\b))",
        r"(?<!\w)\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,5}\b",
        r"(?<![\w.])(?:\(0\d{1,4}\)|0\d{1,5})[ /-]\d{2,4}[ -]?\d{3,5}(?:[ -]?\d{2,4})?\b",
    ),
    "names": (
        rf"\b(?:D[Rr]s?|M[Rr][Ss]?|M[Ss]|M[Ii]ss|M[Xx]|P[Rr][Oo][Ff](?:essor|ESSOR)?|D[Oo][Cc][Tt][Oo][Rr]|Nurse|Sister(?=\s+[A-Z])"
        rf"|Physician Assistant|Rev)\b\.?\s+({_NAME})",
        rf"\b({_NAME}),?\s+(?:M\.?D\b|D\.O\.|R\.?N\b|Ph\.?D|MBBS|FRCR|FRCP|FACR|N\.?P\b|P\.A\.|PA-C|CRNP|RT\(R\))",
        rf"\b({_NAME}),\s+DO\b",
        rf"(?i:\b(?:patient(?:'s)?|pt|full|last|first|family|given|maiden)?\s*name)\s*[:=]\s*({_NAME})",
        rf"(?i:\b(?:patient|pt))\s*:\s*({_FULL_NAME})",
        rf"\b{_SIGNED}(?i:\s+by)?\s*[:,]?\s+({_FULL_NAME})",
        rf"\b{_SIGNED}(?:(?i:\s+by)\s*:?|\s*:)\s*({_NAME})",
        rf"(?i:\b(?:discussed|communicated|conveyed|called|phoned|spoken|spoke|reported|relayed|given|paged|reviewed|per)\b"
        rf"(?:\s+(?:by|in|person|telephone|phone|over|the|results|findings|were|was|this)){{0,6}}"
        rf"(?:\s+(?:to|with))?)\s+({_FULL_NAME})",
        # Initials: after who signs, and as the last word ("JS/ab", "JBS:kml").
        rf"\b(?:{_SIGNED}(?i:\s+by)?|(?i:initials?|initialed|transcriptionist|dictating|seen by|d/w|discussed with|per))\s*:?\s*"  # noqa: E501
        r"((?!(?:CT|MR|MRI|US|PET|PA|AP|ED|ER|ICU|OR|NG|ET|IV|AI|CAD|VQ)\b)(?:[A-Z]\.\s?){2,3}|"
        r"(?!(?:CT|MR|MRI|US|PET|PA|AP|ED|ER|ICU|OR|NG|ET|IV|AI|CAD|VQ|THE|AND|BY|TO|NO|IN|OF|ON|AT|IS|WAS)\b)[A-Z]{2,3}\b(?![\w-]))",
        r"(?:^|(?<=\s))((?!(?:PA|AP|CT|MR|AND)\b)[A-Z]{2,3}(?:/|:\s?)(?!(?:lat|ap|pa)\b)[a-z]{2,3})(?=\s*\.?\s*$)",
    ),
    "places": (
        rf"\b{_PLACE}\s+(?i:hospitals?|medical\s+cent(?:er|re)|health\s+cent(?:er|re)|clinic|infirmary|hospice|"
        r"nursing\s+home|health\s*care|health\s+system|NHS\s+(?:foundation\s+)?trust)\b",
        rf"\b(?i:hospital|clinic|university)\s+of\s+({_PLACE})",
        rf"\b(?:Hospital|HOSPITAL|Institution|Facility|Clinic|Site|Location)\s*:\s*({_PLACE})",
        r"\b\d{1,5}[A-Za-z]?,?\s+(?:(?:N|S|E|W|North|South|East|West)\.?\s+)?(?:[A-Z][\w'’-]+\s+){1,3}"
        r"(?:(?:Street|Avenue|Road|Boulevard|Lane|Drive|Court|Way|Place|Square|Terrace|Close|Crescent|Highway|Parkway)\b"
        r"|(?:St|Ave|Rd|Blvd|Ln|Dr|Ct|Pl|Sq|Hwy|Pkwy)\b\.?)",
        r"\b\d{1,5}\s+(?:[A-Z]+\s+){1,3}(?:STREET|AVENUE|ROAD|BOULEVARD|LANE|DRIVE|COURT)\b",
        r"\b(?:[A-Z][a-zß]+(?:straße|strasse|weg|platz|gasse)|(?:[Rr]ue|[Cc]alle|[Vv]ia)\s+(?:de\s+|la\s+)*[A-Z]\w+)\s+\d{1,4}\b",
        r"(?i:\bP\.?\s?O\.?\s+Box\s+\d+)",
        r"\b(?:[A-Z][a-z]+\s+){0,2}[A-Z][a-z]+,\s+[A-Z]{2}\s+\d{5}(?:-\d{4})?\b",
        r"\b[A-Z]{1,2}\d[\dA-Z]?\s+\d(?!MM|CM|ML|CC|AM|PM|TH|ND|RD|ST|HU|MG|KG|XR|CT)[A-Z]{2}\b",
        r"\b(?:[Ww]ard|WARD|Room|ROOM|Rm\.?|[Bb]ed|BED)\s*#?:?\s+(\d+\w?)\b",
    ),
    "numbers": (
        r"(?i:\b(?:MRN?|medical record|accession|acc|patient id|pt id|hospital|hosp|NHS|SSN|social security|chart|account|"  # noqa: E501
        r"acct|policy|unit|file|order|requisition|record|ID)\b\.?(?:(?:\s*(?:no\b\.?|number|id\b|#|:)){1,3}|(?<=MRN)|"
        r"(?<=accession)))\s*[:#]?\s*([A-Za-z]{0,4}-?\d[\w/-]*)",
        r"(?i:\b(?:case|encounter|exam|study|visit|specimen)\b\.?(?:\s*(?:no\b\.?|number|id\b|#))\s*[:#]?\s*)([A-Za-z]{0,3}-?\d[\w-]*)",
        r"(?i:\b(?:case|encounter|visit|accession|acc)\s*:?\s+)([A-Za-z]{0,3}-?\d[\w-]{3,})(?!\.\d)",
        r"(?<![\w.-])\d{3}-\d{2}-\d{4}\b",
        r"(?<![\w.])\d{1,19}(?:\.\d{1,30}){4,}\b",
        r"(?<![\w.-])[A-Z]{1,4}-?\d{5,}\b",
        r"(?<![\w.-])[A-Z]{1,3}-?\d{2}-\d{4,}\b",
        r"(?<![\w.])\d{6,}\b",
    ),
}


def patterns(names: str, file: str) -> tuple[str, ...]:
    """Return the regular expressions of the built-in ``names`` ("dates,names", "all", or ""), then of ``file``.

    The file has one Python regular expression per line; blank lines and lines that begin with ``#`` are
    skipped.

    Raises:
        UserError: for an unknown name, an unreadable file, a line that is not a regular expression, or one that
            matches the empty string.
    """
    selected = [name for raw in names.split(",") if (name := raw.strip())]
    unknown = [name for name in selected if name not in (*BUILT_IN, "all")]
    if unknown:
        raise UserError(f"unknown patterns {', '.join(unknown)}; choose from {', '.join(BUILT_IN)}, all")
    found = [line for name, lines in BUILT_IN.items() if name in selected or "all" in selected for line in lines]
    return tuple(found + (_read_patterns(Path(file)) if file else []))


def _read_patterns(path: Path) -> list[str]:
    try:
        lines = text_lines(decode_text(read_bounded(path, MAX_CONFIG_BYTES)))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a file of patterns: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            matches_empty = re.compile(line).search("") is not None
        except re.error as error:
            raise UserError(f"{path}, line {number} is not a regular expression: {error}") from None
        if matches_empty:
            raise UserError(f"{path}, line {number} matches the empty string, so it would redact every position")
        found.append(line)
    return found


def redact(text: str, expressions: Sequence[str]) -> tuple[str, int]:
    """Replace every match by ``___``; return the text and the number of matches.

    If an expression has a group, only the group is replaced: "Dr. Smith" becomes "Dr. ___".
    """
    total = 0
    for expression in expressions:
        text, count = _compiled(expression).subn(_replacement, text)
        total += count
    return text, total


@cache
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression)


def _replacement(match: re.Match[str]) -> str:
    if not match.lastindex or match[1] is None:
        return MARK
    whole, (begin, end) = match[0], match.span(1)
    return whole[: begin - match.start()] + MARK + whole[end - match.start() :]
