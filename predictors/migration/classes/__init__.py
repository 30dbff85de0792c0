"""What a migrated folder's classes are copied from: each file stands by itself there, and is its owner's to change."""
