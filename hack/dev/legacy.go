package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/qcloud"
)

// legacyHost is where callers of the legacy API believe to be, and what they sign.
const legacyHost = "iotcloud.api.qcloud.com"

// legacyAPI calls the legacy HTTP API as programs written for it do.
type legacyAPI struct {
	url                 string // of the front
	secretID, secretKey string
	nonce               int // of the last call
}

func newLegacyAPI(env *localenv.Env) *legacyAPI {
	return &legacyAPI{url: env.APIURL + qcloud.V2.Path(), secretID: env.SecretID, secretKey: env.SecretKey}
}

// example is a text of parameters, name=value joined by "&", nothing encoded, as
// the examples of CreateTask are printed.
type example string

// post sends the example as it is, followed by the common parameters of a signed
// call, and returns the answer.
func (a *legacyAPI) post(ctx context.Context, text example) ([]byte, error) {
	a.nonce++
	common := []string{
		"Nonce", strconv.Itoa(a.nonce),
		"Region", "gz",
		"SecretId", a.secretID,
		"Timestamp", strconv.FormatInt(time.Now().Unix(), 10),
	}
	signed := map[string]string{}
	for pair := range strings.SplitSeq(string(text), "&") {
		name, value, _ := strings.Cut(pair, "=")
		signed[name] = value
	}
	body := string(text)
	for pair := range slices.Chunk(common, 2) {
		signed[pair[0]] = pair[1]
		body += "&" + pair[0] + "=" + pair[1]
	}
	signature := qcloud.Sign(qcloud.HmacSHA1, a.secretKey, qcloud.StringToSign(http.MethodPost, legacyHost, qcloud.V2.Path(), signed))
	body += "&Signature=" + url.QueryEscape(signature)

	request, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Host = legacyHost
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("calling the legacy HTTP API: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("calling the legacy HTTP API: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the legacy HTTP API answers %s: %s", response.Status, answer)
	}
	return answer, nil
}

// call posts and decodes the answer, which must be a success.
func (a *legacyAPI) call(ctx context.Context, text example, answer any) error {
	body, err := a.post(ctx, text)
	if err != nil {
		return err
	}
	var outcome struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(body, &outcome); err != nil {
		return fmt.Errorf("%s: the answer %q: %w", text, body, err)
	}
	if outcome.Code != 0 {
		return fmt.Errorf("%s: code %d: %s", text, outcome.Code, outcome.Message)
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return fmt.Errorf("%s: the answer %q: %w", text, body, err)
	}
	return nil
}

// legacyTask is a task in the answers of DescribeTask and ListTasks.
type legacyTask struct {
	Type          string `json:"type"`
	ID            string `json:"id"`
	Status        int    `json:"status"`
	ErrMsg        string `json:"errMsg"`
	AllDeviceCnt  int64  `json:"allDeviceCnt"`
	DoneDeviceCnt int64  `json:"doneDeviceCnt"`
}

// done is the status of a task that has ended well (DescribeTask, status).
const done = 3

func (t legacyTask) phase() string {
	phases := []string{1: "Waiting", 2: "Processing", done: "Done", 4: "Failed", 5: "Cancelled"}
	if t.Status < 1 || t.Status >= len(phases) {
		return fmt.Sprintf("status %d", t.Status)
	}
	return phases[t.Status]
}
