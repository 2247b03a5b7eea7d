//! Attacks, one file each, and the victim where network, defense, BPDA and EOT meet
