from pathlib import Path

from sendwhy.reasons import Service
from sendwhy.service import main

from message_log.app import make_app
from message_log.rebuild import rebuild_command
from message_log.settings import MessageLogSettings

if __name__ == "__main__":
    main(
        Service.MESSAGE_LOG,
        MessageLogSettings,
        make_app,
        Path(__file__).parent / "migrations",
        commands={"rebuild": rebuild_command},
    )
