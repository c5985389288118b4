package qcloud

import (
	"crypto/rand"
	"encoding/binary"
	"maps"
	"net/url"
	"strconv"
	"time"
)

// Signer signs calls as clients do that send their parameters as a form, in the query
// or in the body.
type Signer struct {
	Version Version
	// Host is what the caller takes the server for, which is signed.
	Host                string
	SecretID, SecretKey string
}

// Sign returns params together with those of every call, each unless it is there
// already: SecretId, Timestamp, a Nonce of its own, Version where that is V3, and
// Signature. Method is GET or POST.
func (s Signer) Sign(method string, at time.Time, params map[string]string) map[string]string {
	var nonce [8]byte
	_, _ = rand.Read(nonce[:]) // never fails
	all := map[string]string{
		"SecretId": s.SecretID, "Timestamp": strconv.FormatInt(at.Unix(), 10),
		"Nonce": strconv.FormatUint(binary.BigEndian.Uint64(nonce[:])>>1|1, 10),
	}
	if s.Version == V3 {
		all["Version"] = VersionV3
	}
	maps.Copy(all, params)
	if _, given := params["Signature"]; !given {
		all["Signature"] = Sign(all["SignatureMethod"], s.SecretKey, StringToSign(method, s.Host, s.Version.Path(), all))
	}
	return all
}

// EncodeForm writes parameters as they are in a query or a body.
func EncodeForm(params map[string]string) string {
	values := url.Values{}
	for name, value := range params {
		values.Set(name, value)
	}
	return values.Encode()
}
