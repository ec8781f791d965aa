from sendwhy.settings import PrivacySettings


class Settings(PrivacySettings):
    """`privacy_key` tags what outlives an erased contact; with another key, their STOP would be forgotten.

    `transactional_workspaces`: comma-separated; their campaigns and automations may call a send transactional.
    """

    transactional_workspaces: str = ""

    @property
    def believed_workspaces(self) -> frozenset[str]:
        return frozenset(filter(None, (part.strip() for part in self.transactional_workspaces.split(","))))
