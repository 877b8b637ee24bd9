"""The vocabulary of the demo: topics of a software team with their own words, and words that all topics share.

Written for this project. `text.py` makes the pre-training text of the demo base from it, `interactions.py` the tickets of the
demo data. A verb is given in its base form, and `text.py` inflects it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """What one field of work talks about: nouns, verbs (base form, regular) and adjectives."""

    name: str
    things: tuple[str, ...]
    actions: tuple[str, ...]
    kinds: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _topic(name: str, things: str, actions: str, kinds: str) -> Topic:
    return Topic(name=name, things=_words(things), actions=_words(actions), kinds=_words(kinds))


TOPICS: tuple[Topic, ...] = (
    _topic(
        "sound",
        """
        mixer track sample tempo chord melody speaker microphone synthesizer sequencer playlist song album volume equalizer reverb drum
        piano guitar tone pitch waveform recording headphone codec decoder note loop beat amplifier noise channel audio music sound
        player ripper tuner lyrics podcast metronome effect plugin
        """,
        "play record mix sample amplify mute tune encode decode listen",
        "loud stereo acoustic quiet musical digital",
    ),
    _topic(
        "graphics",
        """
        canvas layer brush palette colour pixel shadow texture mesh vertex shader sprite icon thumbnail image photo picture camera frame
        gradient polygon curve raster vector scene render light lens histogram bitmap viewer gallery scanner animation drawing plot
        chart outline cursor transparency
        """,
        "draw paint render crop rotate blend resize display scale animate",
        "bright dark coloured transparent sharp blurred",
    ),
    _topic(
        "network",
        """
        socket packet router proxy gateway port address hostname firewall tunnel interface bandwidth latency connection protocol server
        client request response peer subnet handshake timeout switch wireless modem traffic resolver domain load balancer sniffer
        datagram link route download upload
        """,
        "connect route forward send receive transmit ping reconnect download resolve",
        "remote wireless local slow encrypted reachable",
    ),
    _topic(
        "storage",
        """
        disk partition volume backup snapshot archive block sector filesystem directory folder mount quota inode cache bucket replica
        restore checksum drive tape chunk journal capacity mirror raid controller compression index blob recovery sync copy retention
        """,
        "store restore archive copy mount compress mirror format allocate synchronise",
        "corrupt full compressed redundant incremental permanent",
    ),
    _topic(
        "editor",
        """
        cursor buffer selection clipboard indent bracket keyword highlight snippet tab pane ruler macro undo redo search replacement
        shortcut keybinding completion outline gutter minimap caret paragraph wrap margin syntax theme toolbar palette bookmark typing
        multicursor whitespace
        """,
        "edit type paste indent highlight select complete wrap replace fold",
        "modal split visual editable highlighted read-only",
    ),
    _topic(
        "packaging",
        """
        package dependency manifest installer wheel mirror repository upgrade lockfile archive maintainer build bundle registry artifact
        changelog patch release metapackage section priority suite component binary source symlink postinst conflict constraint resolver
        distribution
        """,
        "install upgrade pack bundle publish pin patch remove resolve configure",
        "outdated broken stable virtual optional transitional",
    ),
    _topic(
        "docs",
        """
        manual tutorial chapter glossary example heading footnote diagram paragraph guide reference page index screenshot appendix
        sentence translation typo template handbook faq section caption citation summary introduction table bullet readme howto article
        draft wording
        """,
        "document explain describe translate illustrate rewrite clarify outline publish mention",
        "clear short missing readable detailed official",
    ),
    _topic(
        "login",
        """
        password token session account permission certificate secret role cookie credential signature key user group passphrase captcha
        invitation identity challenge authenticator fingerprint privilege owner lockout signin scope audit directory keyring policy
        single sign-on
        """,
        "sign authenticate authorise verify revoke grant reject expire protect trust",
        "secure expired invalid anonymous private forbidden",
    ),
    _topic(
        "games",
        """
        player level puzzle board score dungeon monster card dice maze enemy sword castle ship rocket planet tank racing arcade chess
        opponent round turn map tile quest weapon hero team ball bonus life enemy adventure strategy simulation joystick gamepad
        tournament dungeon highscore
        """,
        "play jump shoot race explore collect defeat score solve challenge",
        "addictive funny classic multiplayer fast colourful",
    ),
    _topic(
        "web",
        """
        browser website page form link cookie stylesheet script template request header url endpoint framework feed blog forum cms wiki
        widget javascript html css api servlet webserver crawler bookmark tab upload redirect banner hosting accessibility frontend
        backend
        """,
        "browse serve fetch render redirect host publish embed validate crawl",
        "dynamic static responsive online interactive asynchronous",
    ),
    _topic(
        "database",
        """
        table row column query index schema transaction cursor key record trigger view migration replica cluster shard constraint join
        statement lock commit rollback engine dump field relation database sql vacuum pool driver storage procedure dataset
        """,
        "query insert select index migrate commit store update delete aggregate",
        "relational distributed indexed consistent empty nested",
    ),
    _topic(
        "science",
        """
        molecule protein sequence genome experiment measurement sensor matrix equation theorem galaxy telescope particle energy orbit
        atom reaction spectrum sample statistic model simulation integral polynomial graph cell temperature pressure crystal climate
        species tree alignment
        """,
        "measure simulate compute estimate observe predict calculate align analyse solve",
        "numerical biological chemical physical statistical linear",
    ),
    _topic(
        "language",
        """
        compiler parser lexer interpreter grammar function class module object type variable pointer syntax bytecode linker symbol macro
        header runtime garbage collector closure iterator exception generic method template namespace stack heap debugger assembler
        toolchain
        """,
        "compile parse link evaluate declare call return debug optimise generate",
        "functional imperative typed generic portable recursive",
    ),
    _topic(
        "mail",
        """
        message inbox attachment sender recipient spam filter newsletter mailbox reply thread header signature subject mailing list
        delivery queue bounce address contact calendar invitation reminder envelope postmaster relay folder digest notification draft
        """,
        "mail send deliver reply forward filter subscribe attach sort notify",
        "unread urgent automatic personal daily junk",
    ),
    _topic(
        "kernel",
        """
        driver device interrupt scheduler process thread memory register module firmware boot loader bus clock core timer page fault
        swap semaphore syscall sensor battery keyboard mouse touchpad monitor printer adapter hardware processor fan power virtual
        machine hypervisor container
        """,
        "boot schedule allocate suspend resume load detect probe emulate interrupt",
        "embedded low-level parallel idle preemptive virtual",
    ),
    _topic(
        "testing",
        """
        test suite fixture assertion coverage mock regression benchmark failure case report runner seed property fuzzer harness baseline
        flake pipeline stage job matrix badge snapshot check lint retry result threshold environment worker scenario
        """,
        "test check assert fail pass retry skip cover measure reproduce",
        "flaky green red slow automated deterministic",
    ),
    _topic(
        "text",
        """
        word line character string pattern expression dictionary spelling corpus encoding unicode alphabet paragraph token sentence
        letter translation thesaurus converter markup pager diff encoding column formatter font glyph hyphenation script reader printing
        document publishing
        """,
        "format convert split sort count match search replace print spell",
        "plain formatted bilingual readable lexical ambiguous",
    ),
    _topic(
        "video",
        """
        movie subtitle stream frame player codec container trailer clip episode television tuner screen recorder transcoder bitrate
        caption webcam broadcast timeline scene resolution projector disc dvd chapter menu capture overlay streaming
        """,
        "stream capture transcode record play convert cut broadcast rip pause",
        "interlaced smooth live widescreen scalable buffered",
    ),
    _topic(
        "monitoring",
        """
        metric alert dashboard log trace probe counter gauge event incident pager threshold graph uptime agent collector exporter sample
        rate retention report anomaly heartbeat status page usage health outage load statistics
        """,
        "monitor watch log collect alert report track inspect export record",
        "healthy noisy critical historical real-time verbose",
    ),
    _topic(
        "education",
        """
        school pupil lesson teacher exercise vocabulary quiz course alphabet flashcard classroom grade exam homework learner student
        university lecture geography arithmetic multiplication fraction game drawing child reading typing tutor
        """,
        "learn teach practise train study repeat memorise grade answer improve",
        "young simple educational curious playful basic",
    ),
    _topic(
        "desktop",
        """
        window panel menu applet wallpaper taskbar workspace dialog button slider widget launcher tray notification theme toolkit
        session manager shortcut screensaver clipboard file icon dock gesture screen checkbox label desktop compositor
        """,
        "open close drag drop resize minimise launch customise click scroll",
        "graphical lightweight minimal modern configurable floating",
    ),
    _topic(
        "science-fiction",
        """
        robot spaceship galaxy alien station colony engine reactor android signal captain crew mission hologram shuttle comet asteroid
        gravity laser shield teleporter sensor probe explorer universe
        """,
        "explore land launch repair escape travel discover orbit communicate survive",
        "distant unknown ancient brave lonely metallic",
    ),
    _topic(
        "planning",
        """
        sprint milestone roadmap deadline estimate backlog ticket task story owner meeting standup review retrospective holiday capacity
        budget risk decision customer stakeholder priority scope handover shift schedule week quarter
        """,
        "plan assign schedule estimate postpone deliver discuss agree prioritise finish",
        "late early blocked planned agreed overdue",
    ),
    _topic(
        "shell",
        """
        terminal prompt command pipe script alias history argument option flag variable path console session multiplexer job signal
        output input stream exit status file wildcard loop escape daemon cron process
        """,
        "run execute pipe redirect export source list print kill wait",
        "interactive quiet recursive verbose silent hidden",
    ),
)

# General verbs (regular), nouns, adjectives and adverbs, for all topics.
VERBS = _words(
    """
        add allow apply avoid break build change clean close combine compare contain control convert create define depend detect develop
        disable enable ensure expect extend fix follow handle help implement improve include inspect integrate keep launch limit load
        look maintain manage merge move need offer open organise perform prepare prevent process produce provide reduce refuse remember
        remove rename replace report request require review save share show simplify start stop support switch test transfer turn update
        use validate want work
        """
)
NOUNS = _words(
    """
        access amount application approach area attempt author base behaviour bug case change choice code collection colleague comment
        community company configuration content control data date day default design developer difference engineer error example
        experience extension feature file format framework goal group help idea implementation improvement information input issue item
        kind language level library license list machine member method minute mode month morning name number office operation option
        order output part people piece place plan platform point problem process program programmer project purpose question range
        reason release report result rule scale script service set setting side size software solution standard state step structure
        style support system team thing time tool toolkit type update user utility value variety version way week window work workflow
        year
        """
)
ADJECTIVES = _words(
    """
        additional advanced available basic better common compatible complete complex correct current custom different easy efficient
        empty experimental extra fast final first flexible following free full general good great hard high important independent
        internal large last light little long low main manual modern multiple native necessary new next normal old open original other
        own popular possible powerful previous public quick rare real recent reliable same second separate several similar simple single
        small special specific strong third tiny unusual useful useless usual various whole wide wrong written
        """
)
ADVERBS = _words(
    """
        again almost already also always automatically carefully completely correctly currently directly early easily entirely
        especially exactly finally fully immediately initially later mostly never normally now often only originally partly quickly
        quietly rarely really recently safely silently slowly sometimes soon still suddenly together usually well yesterday today
        """
)
NAMES = _words(
    """
        Priya Marta Jonas Aiko Samuel Ingrid Tomas Leila Oscar Wanda Hugo Nadia Felix Carmen Boris Yuki Greta Ahmed Paula Viktor Elena
        Kofi Sofia Anton Mina Rafael Judith Milan Astrid Diego Hanna Igor Noor Pavel Rosa Simon Tara Umar Vera Zoe
        """
)
PLATFORMS = ("Linux", "Windows", "macOS", "Android", "FreeBSD", "Debian", "Ubuntu", "Fedora")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
LANGUAGES = ("Python", "Rust", "C", "Java", "Perl", "Haskell", "Ruby", "Go", "JavaScript", "Lua", "Lisp", "Fortran", "OCaml", "PHP")
LICENCES = ("MIT", "BSD", "Apache", "ISC", "GPL", "LGPL", "AGPL", "MPL")
SUFFIXES = ("py", "rs", "c", "go", "js", "cpp", "java", "rb")

# What goes wrong, from worst to least, and what people say of it: how tickets of any topic speak of harm.
SYMPTOMS: tuple[tuple[str, ...], ...] = (
    (
        "data is lost",
        "production is down",
        "every user is blocked",
        "files are destroyed",
        "a secret leaks to the public log",
        "the whole team cannot work",
        "all work since the morning is gone",
        "customers cannot reach us at all",
        "private files of other users are shown",
    ),
    (
        "it crashes",
        "it aborts with a segfault",
        "it hangs forever",
        "the process dies with an exception",
        "it freezes and must be killed",
        "it stops with a fatal error",
        "the program quits at once",
        "it never comes back",
        "nothing helps but a restart",
    ),
    (
        "it is slower than before",
        "it takes twice as long",
        "memory use keeps growing",
        "the wrong value is shown",
        "the result is sometimes wrong",
        "it lags noticeably",
        "it needs three attempts",
        "the numbers are a little wrong",
        "one has to wait for a minute",
    ),
    (
        "a label is misspelled",
        "the colour looks odd",
        "the tooltip has a typo",
        "the spacing is off by a little",
        "an icon is slightly blurred",
        "the wording is unclear",
        "a heading is not aligned",
        "two commas are missing",
        "the title is cut at the end",
    ),
)
SEVERITIES: tuple[tuple[str, ...], ...] = (
    ("a disaster", "an emergency", "critical", "terrible"),
    ("serious", "severe", "a real failure", "bad"),
    ("annoying", "a nuisance", "tiresome", "unpleasant"),
    ("harmless", "cosmetic", "a trifle", "only ugly"),
)
