package qcloud

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
)

// Call is a call as it was sent. Until [Verifier.Verify] has accepted it, nothing
// in it can be trusted.
type Call struct {
	// Version is the version of the API that is called.
	Version Version
	// Action is what is to be done, as the caller wrote it; see [Call.Known].
	Action string
	// SecretID names the credentials the call is signed with.
	SecretID string

	apiVersion string // Version, or X-TC-Version
	token      string
	timestamp  parameter
	nonce      string // none with TC3

	method string // GET or POST
	host   string // as in the request's Host
	params params // nil where body holds the parameters
	body   []byte

	// The signature: one of V2 in Base64, or TC3 if authorization is set.
	signature       string
	signatureMethod string
	authorization   *authorization
	header          http.Header
	query           string
}

// parameter is a text and how callers know it.
type parameter struct{ name, text string }

// Known reports whether the version has the action, so that the action can label
// a metric.
func (c *Call) Known() bool { return c.Version.knows(c.Action) }

// Read reads a call of a version of the API from a request at the version's path.
// It reads the body, at most [MaxBytes]. Errors are of kind BadRequest, TooLarge,
// UnsupportedProtocol, InvalidParameter (a parameter that is given twice or is
// not UTF-8) and, where the header Authorization or a JSON body is at fault,
// SignatureFailure.
func Read(version Version, r *http.Request) (*Call, error) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		return nil, Errorf(KindUnsupportedProtocol, "", "use GET or POST")
	}
	if len(r.URL.RawQuery) > MaxBytes {
		return nil, Errorf(KindTooLarge, "", "the query has more than %d bytes", MaxBytes)
	}
	call := &Call{Version: version, method: r.Method, host: r.Host}
	var contentType string
	var contentParams map[string]string
	if r.Method == http.MethodPost {
		var err error
		// The example requests of CreateTask have no Content-Type and hold a form.
		contentType = "application/x-www-form-urlencoded"
		if given := r.Header.Get("Content-Type"); given != "" {
			if contentType, contentParams, err = mime.ParseMediaType(given); err != nil {
				return nil, Errorf(KindUnsupportedProtocol, "Content-Type", "%w", err)
			}
		}
		if call.body, err = readBody(r.Body); err != nil {
			return nil, err
		}
	}
	if given := r.Header.Get("Authorization"); version == V3 && strings.HasPrefix(given, algorithmTC3) {
		if err := call.readTC3(r, contentType); err != nil {
			return nil, err
		}
		return call, nil
	}
	if err := call.readForm(r, contentType, contentParams["boundary"]); err != nil {
		return nil, err
	}
	return call, nil
}

func readBody(body io.Reader) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(body, MaxBytes+1))
	if _, cut := errors.AsType[*http.MaxBytesError](err); cut || len(content) > MaxBytes {
		return nil, Errorf(KindTooLarge, "", "the body has more than %d bytes", MaxBytes)
	}
	if err != nil {
		return nil, &Error{Kind: KindBadRequest, Detail: "the body ended early", Err: err}
	}
	return content, nil
}

// readForm reads a call whose parameters, the common ones and the signature among
// them, are in the query and, with POST, in a form. Clients sign them together.
func (c *Call) readForm(r *http.Request, contentType, boundary string) error {
	c.params = params{}
	if err := c.params.urlencoded(r.URL.RawQuery); err != nil {
		return err
	}
	if c.method == http.MethodPost {
		var err error
		switch {
		case contentType == "application/x-www-form-urlencoded":
			err = c.params.urlencoded(string(c.body))
		case contentType == "multipart/form-data":
			err = c.params.multipart(c.body, boundary)
		case contentType == "application/json" && c.Version == V3:
			err = Errorf(KindSignatureFailure, "Authorization", "a JSON body needs the header Authorization: %s …", algorithmTC3)
		default:
			err = Errorf(KindUnsupportedProtocol, "Content-Type", "must not be %q", contentType)
		}
		if err != nil {
			return err
		}
	}
	c.body = nil // it is in params now, and may be large
	c.Action = c.params["Action"]
	c.SecretID = c.params["SecretId"]
	c.apiVersion = c.params["Version"]
	c.token = c.params["Token"]
	c.timestamp = parameter{"Timestamp", c.params["Timestamp"]}
	c.nonce = c.params["Nonce"]
	// Base64 ends in "=" here and knows no space: a line end behind it is what the client for
	// Ruby writes, and a space inside is a "+" that was sent without encoding.
	c.signature = strings.ReplaceAll(strings.TrimRight(c.params["Signature"], " \t\r\n"), " ", "+")
	c.signatureMethod = c.params["SignatureMethod"]
	return nil
}
