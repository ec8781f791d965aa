from pydantic import Field
from sendwhy.settings import PrivacySettings


class Settings(PrivacySettings):
    """`privacy_key` tags what outlives an erased contact; with another key, their STOP would be forgotten.

    `transactional_workspaces`: comma-separated; their campaigns and automations may call a send transactional.

    `import_bytes_max`: the largest CSV file that an import takes. It lies in the folder for temporary files (TMPDIR)
    while it is imported.
    """

    transactional_workspaces: str = ""
    import_bytes_max: int = Field(default=512 * 1024 * 1024, ge=1024 * 1024)

    @property
    def believed_workspaces(self) -> frozenset[str]:
        return frozenset(filter(None, (part.strip() for part in self.transactional_workspaces.split(","))))
