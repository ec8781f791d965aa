-- What nobody knows the meaning of may hold people's words and numbers: only its name is kept.
update sender_report set detail = '' where not known;
