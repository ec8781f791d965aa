from sendwhy.reasons import Service
from sendwhy.service import main

from webhook_ingest.app import MIGRATIONS, make_app
from webhook_ingest.settings import Settings

if __name__ == "__main__":
    main(Service.WEBHOOK_INGEST, Settings, make_app, MIGRATIONS)
