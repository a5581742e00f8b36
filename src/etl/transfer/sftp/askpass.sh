#!/bin/sh
# Answers the questions of ssh, which runs it as SSH_ASKPASS; the answers come in its environment. A host key that is
# not known is let in by its fingerprint alone, which ssh compares once more. What is never asked by name gets the
# password: servers word that question as they like.
case $1 in
    "Enter passphrase for key '$ETL_SSH_KEY_FILE'"*)
        printf '%s\n' "$ETL_SSH_PASSPHRASE"
        ;;
    *"key fingerprint is "*"(yes/no"*)
        for key in $ETL_SSH_HOST_KEYS; do
            case $1 in
                *"key fingerprint is $key."*)
                    printf '%s\n' "$key"
                    exit
                    ;;
            esac
        done
        echo no
        ;;
    "Please type 'yes', 'no'"*)
        echo no
        ;;
    *)
        [ -n "$ETL_SSH_PASSWORD" ] || exit 1
        printf '%s\n' "$ETL_SSH_PASSWORD"
        ;;
esac
