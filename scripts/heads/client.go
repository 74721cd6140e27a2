// SPDX-License-Identifier: MIT
// Go's client for scripts/record-heads.
package main

import (
	"bytes"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"strings"
)

func main() {
	base := os.Args[1]
	jar, _ := cookiejar.New(nil)
	client := &http.Client{Jar: jar}
	send := func(method, kind string, body io.Reader, headers ...string) {
		request, _ := http.NewRequest(method, base+"/"+kind+"/a", body)
		for i := 0; i < len(headers); i += 2 {
			request.Header.Set(headers[i], headers[i+1])
		}
		if answer, err := client.Do(request); err == nil {
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		}
	}
	send("GET", "get", nil)
	send("HEAD", "head", nil)
	send("DELETE", "delete", nil)
	send("OPTIONS", "options", nil)
	client.PostForm(base+"/form/a", url.Values{"a": {"b c"}})
	client.Post(base+"/json/a", "application/json", strings.NewReader(`{"a": 1}`))
	send("PUT", "put", bytes.NewReader(make([]byte, 1000)))
	send("PATCH", "patch", strings.NewReader("{}"), "Content-Type", "application/json")
	send("GET", "bearer", nil, "Authorization", "Bearer "+strings.Repeat("t", 200))
	send("GET", "range", nil, "Range", "bytes=0-99")
	send("GET", "cookies", nil)
	send("GET", "after-cookies", nil)
	send("GET", "etag", nil, "If-None-Match", `"1"`)
	send("POST", "empty", nil)
	var buffer bytes.Buffer
	form := multipart.NewWriter(&buffer)
	part, _ := form.CreateFormFile("file", "a.txt")
	part.Write(make([]byte, 100))
	form.Close()
	client.Post(base+"/multipart/a", form.FormDataContentType(), &buffer)
}
