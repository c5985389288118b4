package qcloud

import (
	"fmt"
	"iter"
)

const (
	// maxCandidates is how many pairs of credentials with one SecretId are tried.
	maxCandidates = 16
	// maxEffort is how many bytes are hashed to find out who signed a call: some
	// milliseconds of one core, whatever was sent. The longest call that the API takes
	// needs a quarter of it with one pair, and a usual one with all sixteen less.
	maxEffort = 4 << 20
	// perHash is what hashing a short text costs, in bytes of a long one.
	perHash = 256
)

// variant is one text that the caller may have signed.
type variant struct {
	bytes int                         // to be hashed for each key
	by    func(secretKey string) bool // whether the signature is that of the text with this key
}

// match returns those of the candidates whose key made the signature of one of the variants,
// at least one. The variants are the outer loop: once one has been found it is tried with the
// other candidates too, since keys can be equal, and then no other form can match. Those that
// come first are the most usual, and candidates with the same SecretId, which anybody may have
// put up, cannot use up what another needs for them.
func match(variants iter.Seq[variant], candidates []Candidate, effort *int) ([]Candidate, error) {
	for f := range variants {
		var matching []Candidate
		for _, candidate := range candidates {
			if *effort -= f.bytes + perHash; *effort < 0 {
				failure := Errorf(KindSignatureFailure, "", "the signature does not match")
				failure.Err = fmt.Errorf("gave up after hashing %d bytes for %d pairs of credentials with this SecretId", maxEffort, len(candidates))
				return nil, failure
			}
			if f.by(candidate.SecretKey) {
				matching = append(matching, candidate)
			}
		}
		if matching != nil {
			return matching, nil
		}
	}
	return nil, Errorf(KindSignatureFailure, "", "the signature does not match")
}
