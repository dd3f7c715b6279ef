"""Each handler against what it speaks with: a mail server, HTTP servers, a program."""

from __future__ import annotations

import email
import email.policy
import json
import logging
import sys
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, AuthResult

from dtf_lightning.clock import poll_until
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.alerts.commands import CommandFailed, CommandHandler
from dtf_lightning.farm.alerts.github import GitHubHandler
from dtf_lightning.farm.alerts.handlers import LogHandler, make_handler
from dtf_lightning.farm.alerts.mail import MailHandler
from dtf_lightning.farm.alerts.posting import NotTaken
from dtf_lightning.farm.alerts.webhooks import (
    SIGNATURE,
    TOLERANCE,
    ChatHandler,
    WebhookHandler,
    is_signed,
    slack_shape,
    teams_shape,
)
from dtf_lightning.farm.rules.watching.incidents import Step
from dtf_lightning.farm.settings.alerts import AlertHandlerSettings
from support.farm.server import DEADLINE, Loop
from support.farm.told import Issues

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning")

TIMEOUT = 30.0


@pytest.fixture
def secret(tmp_path):
    file = tmp_path / "secret"
    file.write_text("t0ken\n")
    return file


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[email.message.EmailMessage] = []
        self.refuses = False

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802  aiosmtpd's name
        if self.refuses:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802  aiosmtpd's name
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


@pytest.fixture
def mailbox():
    box = Mailbox()

    def let_in(server, session, envelope, mechanism, told):
        return AuthResult(success=(told.login, told.password) == (b"farm@lab", b"t0ken"), handled=False)

    loop = Loop()

    async def listen():
        return await loop.loop.create_server(
            lambda: SMTP(box, auth_require_tls=False, auth_required=True, authenticator=let_in), "127.0.0.1", 0
        )

    server = loop.start(listen()).result(DEADLINE)
    box.port = server.sockets[0].getsockname()[1]
    yield box
    loop.loop.call_soon_threadsafe(server.close)
    loop.close()


class TestMail:
    def test_it_arrives(self, mailbox, notice, secret):
        """Signed in; the same step twice has one Message-ID, another one is in its thread; names begin no header."""
        handler = MailHandler(
            url=f"smtp://farm%40lab@127.0.0.1:{mailbox.port}",
            sender="Farm <farm@lab>",
            to=("a@lab", "b@lab"),
            secret_file=secret,
        )
        for said in (notice(), notice(), notice(Step.RESOLVED, 2)):
            handler.send(said, TIMEOUT)
        first, again, over = mailbox.mails
        assert first["Subject"] == "[lab] critical: sick (<!channel> Bcc: x@y) is firing"
        assert (first["To"], first["Bcc"], "3 tests failed" in first.get_content()) == ("a@lab, b@lab", None, True)
        assert first["Message-ID"] == again["Message-ID"] != over["Message-ID"]
        assert first["In-Reply-To"] == over["In-Reply-To"]

    def test_who_is_refused(self, mailbox, notice, secret, tmp_path):
        url = f"smtp://farm%40lab@127.0.0.1:{mailbox.port}"
        mailbox.refuses = True
        with pytest.raises(Exception, match="no such mailbox"):
            MailHandler(url=url, sender="f@lab", to=("a@lab",), secret_file=secret).send(notice(), TIMEOUT)
        secret.write_text("wrong")
        with pytest.raises(Exception, match=r"Authentication|535"):
            MailHandler(url=url, sender="f@lab", to=("a@lab",), secret_file=secret).send(notice(), TIMEOUT)
        with pytest.raises(SettingsError, match="cannot read the secret_file"):
            MailHandler(url=url, sender="f@lab", to=("a@lab",), secret_file=tmp_path / "no").send(notice(), TIMEOUT)


class TestWebhooks:
    def test_everything_signed(self, listener, notice, secret):
        WebhookHandler(url=f"{listener.url}/hook?x=1", secret_file=secret, wall=lambda: 1000.0).send(notice(), TIMEOUT)
        (said,) = listener.said
        assert (said.path, said.headers["Idempotency-Key"]) == ("/hook?x=1", "sick-1/1-firing/h")
        assert said.json["alerts"][0]["subject"] == "<!channel>\nBcc: x@y"
        told = said.headers[SIGNATURE]
        assert is_signed(b"t0ken", said.body, told, 1000.0 + TOLERANCE)
        assert not is_signed(b"t0ken", said.body, told, 1001.0 + TOLERANCE)
        assert not is_signed(b"other", said.body, told, 1000.0)
        assert not is_signed(b"t0ken", said.body + b" ", told, 1000.0)
        assert not is_signed(b"t0ken", said.body, told.replace("t=1000", "t=1001"), 1000.0)
        assert not any(is_signed(b"t0ken", said.body, header, 1000.0) for header in ("", "t=x,v1=", "v1=1"))

    @pytest.mark.parametrize("status", [301, 404, 500])
    def test_what_is_not_taken(self, listener, notice, status):
        """The error has the answer, and not the address, which may be a secret."""
        listener.answers = [(status, {"why": "no_channel"})]
        with pytest.raises(NotTaken, match=f"answered {status}: .*no_channel") as found:
            WebhookHandler(url=f"{listener.url}/s3cret").send(notice(), TIMEOUT)
        assert "s3cret" not in str(found.value)
        assert len(listener.said) == 1

    def test_chats(self, listener, notice):
        """Names mention nobody in Slack; Teams gets a card."""
        ChatHandler(url=listener.url, shape=slack_shape).send(notice(), TIMEOUT)
        ChatHandler(url=listener.url, shape=teams_shape).send(notice(), TIMEOUT)
        slack, teams = (said.json for said in listener.said)
        assert "&lt;!channel&gt;" in slack["text"]
        assert "<" not in json.dumps(slack)
        (card,) = teams["attachments"]
        assert card["contentType"] == "application/vnd.microsoft.card.adaptive"
        assert card["content"]["body"][0]["color"] == "attention"


def test_an_issue(notice, secret):
    """Opened once, also where an answer was lost; commented on; closed when it is over."""
    with Issues() as github:
        handler = GitHubHandler(repository="lab/farm", secret_file=secret, url=github.url)
        handler.send(notice(), TIMEOUT)
        handler.send(notice(), TIMEOUT)
        handler.send(notice(Step.WORSE, 2), TIMEOUT)
        handler.send(notice(Step.WORSE, 2), TIMEOUT)
        assert [len(github.issues), len(github.comments[1]), github.issues[0]["state"]] == [1, 1, "open"]
        assert "````" in github.issues[0]["body"], "a fence longer than those in the text"
        github.answers = [(200, github.issues), (200, github.issues[0]), (200, []), (201, {}), (500, {})]
        with pytest.raises(NotTaken):
            handler.send(notice(Step.RESOLVED, 3), TIMEOUT)
        handler.send(notice(Step.RESOLVED, 3), TIMEOUT)
        assert github.issues[0]["state"] == "closed"
        secret.write_text("wrong")
        with pytest.raises(NotTaken, match="401"):
            handler.send(notice(), TIMEOUT)


class TestCommands:
    def test_it_is_told_all(self, notice, tmp_path):
        script = "import json,os,sys; print(json.dumps([json.load(sys.stdin), os.environ['DTF_ALERT_KEY']]), file=open(sys.argv[1], 'w'))"
        CommandHandler(command=(sys.executable, "-c", script, str(tmp_path / "told"))).send(notice(), TIMEOUT)
        told, key = json.loads((tmp_path / "told").read_text())
        assert (told["step"], told["key"], key) == ("firing", "sick-1/1-firing/h", "sick-1/1-firing/h")

    def test_it_fails(self, notice):
        with pytest.raises(CommandFailed, match="has ended with 3: sorry"):
            CommandHandler(command=("sh", "-c", "echo sorry; exit 3")).send(notice(), TIMEOUT)
        with pytest.raises(FileNotFoundError):
            CommandHandler(command=("no-such-program",)).send(notice(), TIMEOUT)

    def test_it_hangs(self, notice, tmp_path):
        """It is ended, with its children."""
        child = tmp_path / "child"
        with pytest.raises(CommandFailed, match=r"has not ended within 0\.3 s"):
            CommandHandler(command=("sh", "-c", f"sleep 1000 & echo $! > {child}; wait")).send(notice(), 0.3)
        pid = int(child.read_text())
        poll_until(lambda: has_ended(pid), DEADLINE, "the child to end")


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_log(notice, caplog):
    with caplog.at_level(logging.INFO):
        LogHandler().send(notice(), TIMEOUT)
        LogHandler().send(notice(Step.RESOLVED), TIMEOUT)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


PLUGIN = """
class Pager:
    def __init__(self, number):
        self.number, self.told = number, []

    def send(self, notice, timeout):
        self.told.append(notice.title)

class Mute:
    pass
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed package that adds handlers."""
    (tmp_path / "pager_plugin.py").write_text(PLUGIN)
    info = tmp_path / "pager_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pager-plugin\nVersion: 1.0\n")
    lines = ["[dtf_lightning.farm.alert_handlers]", "pager = pager_plugin:Pager", "mute = pager_plugin:Mute"]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)


class TestOthers:
    def test_one_of_an_installed_package(self, plugin, notice, tmp_path):
        told = AlertHandlerSettings(name="p", type="pager", options=("number=117",))
        pager = make_handler(told, tmp_path.joinpath)
        pager.send(notice(), TIMEOUT)
        assert (pager.number, len(pager.told)) == ("117", 1)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"type": "pagr"}, "has the type 'pagr', which nobody has; did you mean 'pager'"),
            ({"type": "pager"}, r"could not be made from 'pager_plugin:Pager' with the options \{\}: TypeError"),
            ({"type": "mute"}, "is no handler: it has no `send`"),
        ],
    )
    def test_what_is_no_handler(self, plugin, tmp_path, fields, words):
        with pytest.raises(SettingsError, match=words):
            make_handler(AlertHandlerSettings(name="p", **fields), tmp_path.joinpath)
