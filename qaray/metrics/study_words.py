"""The words in which papers and their questions speak of a study: alternations for ``self_contained.py``.

A blank stands for any white space. Nouns and participles are in every form that a question may have.
"""

from __future__ import annotations

DOCUMENT = "(?:papers?|articles?|manuscript|document|text|passage|excerpt|abstract|preprint|thesis|publication|chapter)"
WORK = (
    "(?:study|studies|research|works?|investigations?|reviews?|reports?|experiments?|trials?|surveys?|project|findings|"
    "results|conclusions?|observations|analys[ie]s|measurements|simulations)"
)
SECTION = (
    "(?:introduction|abstract|discussion|conclusions?|methods|methodology|supplement|appendix|literature review|"
    "materials and methods|(?:background|results|methods?|discussion|experimental) section)"
)
METHOD = (
    "(?:methods?|approach(?:es)?|models?|algorithms?|frameworks?|protocols?|techniques?|procedures?|strateg(?:y|ies)|"
    "schemes?|pipelines?|architectures?|systems?|(?:bio)?sensors?|devices?|platforms?|assays?|tools?|setups?|classifiers?|"
    "workflows?|designs?|mechanisms?|methodolog(?:y|ies)|process(?:es)?|networks?)"
)
SAMPLE = (
    "(?:samples?|specimens?|participants|patients|subjects|respondents|volunteers|interviewees|animals|mice|rats|"
    r"data\s?sets?|cohorts?)"
)
CONDITION = (
    "(?:temperatures?|concentrations?|doses?|solvents?|pressures?|catalysts?|materials?|data|conditions?|values?)"
)
ACTORS = "(?:authors?|researchers|investigators|experimenters|scientists|(?:research )?team|writers?)"
FIGURE = "(?:figures?|graphs?|plots?|charts?|diagrams?|tables?|images?|micrographs?|schemes?|equations?)"
NUMBERED_PART = (
    r"(?:fig(?:ure)?s?|tables?|tab|schemes?|equations?|eqs?n?|sections?|sec|appendi(?:x|ces)|ref(?:erence)?s?)\b\.?"
)
NUMBERED_STEP = (
    "(?:experiment|sample|entry|example|run|specimen|batch|formulation|method|model|participant|patient|site|station|"
    "dataset|cohort|group|condition|scenario|hypothesis)s?"
)
COMPOUND = (
    "(?:compound|complex|complexe|ligand|product|intermediate|derivative|analogue|polymer|salt|catalyst|inhibitor|"
    "substrate|dye|monomer|precursor)s?"
)
PURPOSE = (
    "(?:aims?|objectives?|purpose|goals?|novelty|contributions?|limitations?|motivation|significance|implications?|focus|"
    "scope|hypothes[ie]s|strengths?|weakness(?:es)?|originality|outcomes?|rationale|conclusions?|findings?)"
)
MEASURED = (
    "(?:yields?|averages?|mean|median|total|overall|maximum|minimum|highest|lowest|optim(?:al|um|i[sz]ed)|concentrations?|"
    "accuracy|limits?|efficienc(?:y|ies)|recover(?:y|ies)|precision|sensitivity|temperature|rates?|values?|sizes?|range|"
    "number|error|results?|effects?|impact|influence|roles?|purpose|aims?|objectives?|goals?|differences?|changes|trends?|"
    "outcomes?|findings?|conclusions?|reasons?|key|main|primary|major|response|performance|contribution|limitations?|"
    "distance|composition|conditions?|criteria|parameters|methods?|steps?|hypothes[ie]s|implications|advantages|p-values?|"
    "ratio|correlation|statistics?|prevalence|incidence|duration|length|thickness|background|constraint)"
)
COUNT = r"(?:\d+|two|three|four|five|six|seven|eight|nine|ten|newly|recently|various|different|other|new)"
# Acts of a study as participles: of its text, of its authors with their objects, and in the laboratory.
SAID = (
    "(?:presented|proposed|described|introduced|reported|mentioned|discussed|suggested|outlined|highlighted|"
    "emphasi[sz]ed|acknowledged|claimed|named|stated|cited|listed|recommended|concluded|noted|addressed|provided|given)"
)
STUDIED = (
    "(?:proposed|developed|presented|described|introduced|reported|mentioned|suggested|studied|investigated|examined|"
    "tested|trained|analy[sz]ed|(?:as-)?(?:synthesi[sz]ed|prepared|fabricated)|employed|collected|recruited|evaluated|detected|"
    "considered)"
)
DONE = (
    rf"(?:{SAID}|{STUDIED}|used|utili[sz]ed|measured|determined|calculated|computed|estimated|enrolled|treated|validated|"
    r"assessed|added|sampled|obtained|performed|conducted|carried out|identified|confirmed|verified|chosen|selected|"
    "compared|characteri[sz]ed|observed|found|optimi[sz]ed|applied|constructed|established|achieved|monitored|quantified|"
    "recorded|reached|designed|trained|implemented|simulated|modell?ed|extracted|purified|incubated|housed|exposed|"
    "administered|randomi[sz]ed|cultured|stored|inferred|included|excluded|explored|deposited|immobili[sz]ed|attached|"
    "adjusted|normali[sz]ed|assigned|interviewed|surveyed|annotated|labell?ed|demonstrated|drawn|made|seen|managed|"
    "transferred|ensured|generated|controlled|varied|explained|attributed|kept|grown|"
    "heated|cooled|dried|washed|milled|mixed|dissolved|stirred|fed|taken|rinsed|filtered|separated|imposed|imaged|"
    "sequenced|mounted|asked|instructed|corrected|fitted|plotted|(?:up|down)-?regulated)"
)
HAD_EFFECT = (
    "(?:influenced|affected|contributed to|led to|showed|gave|caused|limited|exhibited|achieved|yielded|improved|"
    "reduced|increased|performed|provided|removed|reached|produced|had)"
)
VERB = (
    "(?:is|are|was|were|do|does|did|has|have|had|can|could|may|might|will|would|should|try|identify|rely|classify|"
    "tries|identifies|relies|classifies|(?:say|state|show|suggest|describe|mention|report|present|discusse?|propose|claim|"
    "argue|conclude|use|provide|give|introduce|indicate|reveal|support|handle|affect|influence|differ|compare|perform|"
    "improve|achieve|work|reache?|require|addresse?|explain|highlight|emphasi[sz]e|define|list|name|consider|contribute|"
    "outperform|predict|make|demonstrate|assume|capture|solve|aim|focus|find|help|allow|enable|need|fail|account|attempt|"
    "cover|treat|include|yield|produce|ensure|avoid|prevent|detect|estimate|learn|converge|change|vary|explore|examine|"
    "link|relate|refer|deal|look|tell|imply|confirm|challenge|extend|contain|respond|behave|scale|operate|depend|reduce|"
    "increase|generate|combine|measure|remove|fit|select|run)s?)"
)
WHOLE = r"(?![-‐])\b"  # not "author-level", "paper-based"
# After a noun without a complement: the end, punctuation, a verb or a conjunction, but no noun ("paper strip").
ALONE = rf"{WHOLE}(?=\W*$|[,.;:?!)]|\s+(?:{VERB}|and|or|but|when|while|about|regarding|as|to|before|after|than)\b)"
NO_PREPOSITION = r"(?!\s+(?:by|in|for|to|as|on|at|with|from|of|across|during|under|since|between|when)\b)"
